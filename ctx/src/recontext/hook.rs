//! libvirt's hook: an image for a device whose own image stayed behind.
//!
//! Before a domain migrates here, libvirt calls `HOOKS/DRIVER.d/*` with `NAME migrate begin -` and the
//! domain's XML on standard input, and goes on with the XML that comes back, if any
//! (<https://libvirt.org/hooks.html>). The images of the host it comes from do not exist here. libxl
//! then refuses the migration; so such a device starts with an image without data, until the
//! recontextualizer has put this host's in. libvirt waits for the hook, so it may not call libvirt.
//!
//! libvirt 11.3's libxl driver does not get as far as that hook: it formats the XML for it with a flag that its own
//! function refuses (`unsupported flags (0x8) in function virDomainDefFormat`, in its log), and goes on without.
//! It does call `NAME prepare begin -` before it starts the domain that arrives, where the XML can no longer be
//! changed but files can still appear. So under libxl the image without data is put where the XML looks for the
//! one that stayed behind, if that is in this host's own folder of images.

use std::io;
use std::path::{Path, PathBuf};

use ctx_io::{bounded, durable};
use roxmltree::Document;

use super::device::{disks, target_of};
use super::domain::{View, ViewError, child};
use super::edit::{Edit, apply, escape};
use crate::config::ConfigError;

/// Why the hook could not do its part. libvirt then stops the migration.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The XML or our metadata in it.
    #[error("{0}: correct it with `virsh metadata` or `virsh edit` before the migration")]
    View(#[from] ViewError),
    /// The image.
    #[error("the image for a device that arrives without one, {}: {error}", path.display())]
    Write {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Where the image is to lie is not known.
    #[error("where to put an image for a device that arrives without one is not known: {0}")]
    Config(#[from] ConfigError),
    /// The path cannot stand in XML.
    #[error("{} is not UTF-8: choose another `state` in the configuration", .0.display())]
    Path(PathBuf),
}

/// Whether libvirt asks for the XML of a domain that is about to migrate here: `arguments` are those
/// that it gave, the domain's name first.
pub fn asks_for_xml(arguments: &[String]) -> bool {
    matches!(arguments, [_, operation, sub, ..] if operation == "migrate" && sub == "begin")
}

/// Whether libvirt's driver `driver` is about to look for the images of a domain, and can be helped by files alone.
pub fn asks_for_files(driver: &str, arguments: &[String]) -> bool {
    driver == "libxl"
        && matches!(arguments, [_, operation, sub, ..] if operation == "prepare" && sub == "begin")
}

/// A place of an XML that names an image of a device of ours, and the image.
pub type Place = (std::ops::Range<usize>, PathBuf);

/// The places of an XML that name an image of a device of ours which `exists` does not know.
///
/// # Errors
/// [`ViewError`] when it is not XML or our metadata in it is wrong.
pub fn missing(xml: &str, exists: impl Fn(&Path) -> bool) -> Result<Vec<Place>, ViewError> {
    let view = View::parse(xml)?;
    if view.wanted.is_empty() {
        return Ok(Vec::new());
    }
    let document = Document::parse(xml).map_err(|error| ViewError::Xml(error.to_string()))?;
    let places = disks(document.root_element())
        .filter(|disk| {
            target_of(*disk).is_some_and(|target| view.wanted.iter().any(|wanted| wanted.target == target))
        })
        .filter_map(|disk| child(disk, "source")?.attribute_node("file"))
        .filter(|file| !exists(Path::new(file.value())))
        .map(|file| (file.range_value(), PathBuf::from(file.value())))
        .collect();
    Ok(places)
}

/// The XML that libvirt is to go on with, or `None` when the one it has is right. `placeholder` makes
/// the image, once it is needed, and gives its path.
///
/// # Errors
/// [`HookError`].
pub fn filter(
    xml: &str,
    exists: impl Fn(&Path) -> bool,
    placeholder: impl FnOnce() -> Result<PathBuf, HookError>,
) -> Result<Option<String>, HookError> {
    let places = missing(xml, exists)?;
    if places.is_empty() {
        return Ok(None);
    }
    let path = placeholder()?;
    let text = escape(path.to_str().ok_or_else(|| HookError::Path(path.clone()))?);
    let edits = places.into_iter().map(|(range, _)| Edit { range, text: text.clone() }).collect();
    Ok(Some(apply(xml, edits)))
}

/// Puts the image without data wherever an image of a device of ours is missing from this host's folder of images,
/// which lies in the state directory that `state` gives when it is needed.
///
/// # Errors
/// [`HookError`].
pub fn stand_in(xml: &str, state: impl FnOnce() -> Result<PathBuf, HookError>) -> Result<(), HookError> {
    let places = missing(xml, Path::exists)?;
    if places.is_empty() {
        return Ok(());
    }
    let state = state()?;
    let images = state.join("images");
    let plain = |path: &Path| !path.components().any(|part| part == std::path::Component::ParentDir);
    for (_, path) in places.into_iter().filter(|(_, path)| path.starts_with(&images) && plain(path)) {
        write_empty(&path)?;
    }
    Ok(())
}

/// Where a state directory holds the image without data.
pub fn placeholder_path(state: &Path) -> PathBuf {
    state.join("empty.iso")
}

/// Makes the image without data, unless it is there: one for all domains of a host.
///
/// # Errors
/// [`HookError::Write`].
pub fn placeholder(state: &Path) -> Result<PathBuf, HookError> {
    let path = placeholder_path(state);
    write_empty(&path)?;
    Ok(path)
}

/// Writes the image without data, unless it is there. It holds nothing, and every hypervisor's user must be able to
/// reach and to read it.
fn write_empty(path: &Path) -> Result<(), HookError> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    let made = (|| {
        let image = ctx_format::write::empty_iso().map_err(io::Error::other)?;
        if bounded::read(path, image.len() as u64).ok().as_deref() != Some(&image[..]) {
            if let Some(folder) = path.parent() {
                std::fs::DirBuilder::new().recursive(true).mode(0o711).create(folder)?;
            }
            durable::write(path, &image)?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
    })();
    made.map_err(|error| HookError::Write { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::recontext::domain::NAMESPACE;

    fn xml(context: &str, source: &str, noise: &str) -> String {
        format!(
            "<?xml version='1.0'?>\n<domain type='xen'>\n <!-- {noise} --><name>g</name>\n <description>é {noise}</description>\
             <metadata>{context}</metadata>\n <devices>\n  <disk type='file' device='disk'>\n   <driver name=\"phy\"/>\n   \
             <source file={source} index='1'/>\n   <target dev='xvdc' bus='xen'/>\n   <readonly/>\n  </disk>\n  \
             <disk type='file'><source file='/missing/root'/><target dev='xvda'/></disk>\n </devices>\n</domain>\n"
        )
    }

    fn context() -> String {
        format!("<c:context xmlns:c='{NAMESPACE}'><c:device class='a' target='xvdc' bus='xen'/></c:context>")
    }

    /// As [`filter`], with an image at a settled place.
    fn filtered(xml: &str, exists: impl Fn(&Path) -> bool) -> Result<Option<String>, HookError> {
        filter(xml, exists, || Ok("/var/lib/o'ctx/empty.iso".into()))
    }

    #[test]
    fn only_a_migration_that_begins_asks_for_xml() {
        let arguments = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(asks_for_xml(&arguments("guest migrate begin -")));
        for other in ["guest start begin -", "guest migrate end -", "guest", "guest prepare begin -", ""] {
            assert!(!asks_for_xml(&arguments(other)), "{other}");
        }
    }

    #[test]
    fn an_image_that_stayed_behind_gives_way_to_one_that_is_here() {
        let before = xml(&context(), "\"/var/lib/ctx/images/u/xvdc.7.iso\"", "x");
        let after = filtered(&before, |_| false).unwrap().unwrap();
        assert_eq!(
            after,
            before.replace("/var/lib/ctx/images/u/xvdc.7.iso", "/var/lib/o&apos;ctx/empty.iso")
        );
    }

    #[test]
    fn what_is_here_or_not_ours_is_left_alone_and_nothing_is_made() {
        let made = || -> Result<PathBuf, HookError> { panic!("nothing is to be made") };
        let ours = xml(&context(), "'/i.iso'", "");
        assert_eq!(filter(&ours, |path| path == Path::new("/i.iso"), made).unwrap(), None);
        assert_eq!(filter(&xml("", "'/i.iso'", ""), |_| false, made).unwrap(), None);
        let empty = ours.replace("<source file='/i.iso' index='1'/>", "");
        assert_eq!(filter(&empty, |_| false, made).unwrap(), None);
        assert!(filter("<domain>", |_| false, made).is_err());
    }

    #[test]
    fn the_image_is_made_once_and_made_anew_when_it_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let path = placeholder(&state).unwrap();
        let image = std::fs::read(&path).unwrap();
        assert_eq!(&image[16 * 2048 + 1..16 * 2048 + 6], b"CD001");
        std::fs::write(&path, "").unwrap();
        assert_eq!(placeholder(&state).unwrap(), path);
        assert_eq!(std::fs::read(&path).unwrap(), image);
        let error = placeholder(&path).unwrap_err().to_string();
        assert!(error.contains("empty.iso"), "{error}");
    }

    #[test]
    fn before_libxl_starts_a_domain_the_missing_image_appears_in_our_folder_and_nowhere_else() {
        let arguments = ["g", "prepare", "begin", "-"].map(str::to_owned);
        assert!(asks_for_files("libxl", &arguments) && !asks_for_files("qemu", &arguments));
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let image = state.join("images/u/xvdc.7.iso");
        let put = |path: &Path| {
            stand_in(&xml(&context(), &format!("'{}'", path.display()), ""), || Ok(state.clone())).unwrap();
        };
        put(&image);
        assert_eq!(std::fs::read(&image).unwrap(), ctx_format::write::empty_iso().unwrap());
        std::fs::write(&image, "an image of this host").unwrap();
        put(&image);
        assert_eq!(std::fs::read(&image).unwrap(), b"an image of this host");
        for elsewhere in [dir.path().join("x.iso"), state.join("images/../x.iso")] {
            put(&elsewhere);
            assert!(!elsewhere.exists(), "{}", elsewhere.display());
        }
    }

    proptest! {
        #[test]
        fn nothing_but_the_source_is_changed(
            noise in "[a-zé>&;'\" \t\n]{0,40}", name in "/[^\\p{Cc}\\p{Cn}\\s]{1,20}", double in any::<bool>(),
        ) {
            // Two hyphens and a bare ampersand are not XML.
            let noise = noise.replace('&', "&amp;");
            let quoted = if double { format!("\"{}\"", escape(&name)) } else { format!("'{}'", escape(&name)) };
            let before = xml(&context(), &quoted, &noise);
            let after = filtered(&before, |_| false).unwrap().unwrap();
            let at = before.find(&quoted).unwrap() + 1;
            let rest = before.len() - (at + quoted.len() - 2);
            prop_assert_eq!(&after[..at], &before[..at]);
            prop_assert_eq!(&after[after.len() - rest..], &before[before.len() - rest..]);
            let view = View::parse(&after).unwrap();
            prop_assert_eq!(view.disks["xvdc"].source.as_deref(), Some("/var/lib/o'ctx/empty.iso"));
            prop_assert_eq!(filtered(&after, |path| path.ends_with("empty.iso")).unwrap(), None);
        }

        #[test]
        fn any_text_is_answered_without_a_panic(text in "\\PC{0,120}") {
            let _ = filtered(&text, |_| false);
            let _ = filtered(&xml(&context(), "'/i'", &text), |_| false);
        }
    }
}
