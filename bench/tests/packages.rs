//! Every package that the project installs is there, on each release that it is to run on.
//!
//! mmdebstrap's dry run fetches a release's lists into a folder, and apt resolves there what this machine need not have:
//! nothing is installed, and root is not needed. A package that a new release has dropped is found here, and not by somebody
//! on a fresh machine.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bench::image::Recipe;

/// The releases of Debian that `ci/setup` installs on.
const DEBIAN: [&str; 2] = ["bookworm", "trixie"];
/// That of Ubuntu.
const UBUNTU: &str = "noble";
/// The components of Ubuntu's archive that an installation has. mmdebstrap knows where the archive is.
const UBUNTU_COMPONENTS: &str = "--components=main,universe";
/// The package that has the keys of Ubuntu's archive, and where they are in it.
const UBUNTU_KEYS: (&str, &str) = ("ubuntu-keyring", "usr/share/keyrings/ubuntu-archive-keyring.gpg");
/// Sections that are of one release only: what `ci/kernels` boots.
const OF_ONE_RELEASE: [(&str, &str); 1] = [("kernels", "trixie")];

#[derive(Debug, Default)]
struct Section {
    optional: bool,
    packages: Vec<String>,
}

/// `ci/packages`, by section.
fn sections() -> BTreeMap<String, Section> {
    let mut sections = BTreeMap::<String, Section>::new();
    let mut name = String::new();
    for line in include_str!("../../ci/packages").lines() {
        if let Some(title) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            let (first, rest) = title.split_once(' ').unwrap_or((title, ""));
            assert!(["", "optional"].contains(&rest), "{line}");
            first.clone_into(&mut name);
            sections.insert(name.clone(), Section { optional: !rest.is_empty(), packages: Vec::new() });
        } else if !line.is_empty() && !line.starts_with('#') {
            assert!(line.bytes().all(|b| b.is_ascii_graphic()), "one package a line: {line:?}");
            sections.get_mut(&name).unwrap().packages.push(line.to_owned());
        }
    }
    sections
}

/// A release's lists of packages, as apt reads them.
struct Release {
    folder: tempfile::TempDir,
}

/// What mmdebstrap makes of a suite is in `root` of this folder. Nothing when it cannot fetch that here, with the reason.
fn mmdebstrap(options: &[&str], suite: &str) -> Result<tempfile::TempDir, String> {
    // apt fetches as a user of its own, who may not enter a private folder.
    let folder = tempfile::Builder::new().prefix("packages-").tempdir_in("/var/tmp").unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let output = Command::new("mmdebstrap")
        .args(options)
        .args(["--format=directory", suite])
        .arg(folder.path().join("root"))
        .env("TMPDIR", folder.path())
        .output()
        .map_err(|error| format!("mmdebstrap: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!(
            "mmdebstrap fetches nothing of {suite} here: {}",
            said.lines().last().unwrap_or_default()
        ));
    }
    Ok(folder)
}

impl Release {
    fn debian(suite: &str) -> Result<Self, String> {
        Self::fetch(&[], suite)
    }

    /// With the keys of this machine, else with those that Debian has in a package: Debian signs that.
    fn ubuntu() -> Result<Self, String> {
        let (package, path) = UBUNTU_KEYS;
        let here = Path::new("/").join(path);
        if here.exists() {
            return Self::fetch(&[UBUNTU_COMPONENTS, &format!("--keyring={}", here.display())], UBUNTU);
        }
        let include = format!("--include={package}");
        let keys = mmdebstrap(&["--variant=extract", &include], DEBIAN[1])?;
        let keyring = format!("--keyring={}", keys.path().join("root").join(path).display());
        Self::fetch(&[UBUNTU_COMPONENTS, &keyring], UBUNTU)
    }

    fn fetch(options: &[&str], suite: &str) -> Result<Self, String> {
        let options = [options, &["--simulate", "--variant=custom", "--skip=cleanup"]].concat();
        let folder = mmdebstrap(&options, suite)?;
        // So that nothing that this machine configures counts.
        std::fs::write(folder.path().join("none"), "").unwrap();
        Ok(Self { folder })
    }

    fn apt(&self, program: &str, arguments: &[&str], packages: &[String]) -> Output {
        let root = self.folder.path().join("root");
        let option = |name: &str, path: PathBuf| format!("--option={name}={}", path.display());
        Command::new(program)
            .arg(option("Dir", root.clone()))
            .arg(option("Dir::State::status", root.join("var/lib/dpkg/status")))
            .args(arguments)
            .args(packages)
            .env("APT_CONFIG", self.folder.path().join("none"))
            .env("LC_ALL", "C.UTF-8")
            .output()
            .unwrap()
    }

    /// Whether apt would install these together.
    fn resolve(&self, packages: &[String]) -> Result<(), String> {
        let output = self.apt("apt-get", &["--simulate", "--no-install-recommends", "install"], packages);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(said) }
    }

    /// Those of these packages that the release has.
    fn has(&self, packages: &[String]) -> Vec<String> {
        let output = self.apt("apt-cache", &["show", "--no-all-versions"], packages);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.lines().filter_map(|line| line.strip_prefix("Package: ")).map(str::to_owned).collect()
    }
}

/// What `ci/setup --tests` installs on a release, and has to go together; and what it installs where a release has it.
fn lists(suite: &str) -> (Vec<String>, Vec<String>) {
    let wanted = |name: &str| OF_ONE_RELEASE.iter().all(|(one, only)| *one != name || *only == suite);
    let of = |optional: bool| {
        sections()
            .into_iter()
            .filter(|(name, section)| section.optional == optional && wanted(name))
            .flat_map(|(_, section)| section.packages)
            .collect()
    };
    (of(false), of(true))
}

#[test]
fn all_that_is_installed_is_resolved_on_ubuntu() {
    let release = match Release::ubuntu() {
        Ok(release) => release,
        Err(reason) => {
            eprintln!("SKIPPED packages::all_that_is_installed_is_resolved_on_ubuntu: {reason}");
            return;
        }
    };
    // It lacks none of those that a Debian lacks.
    let (required, optional) = lists(UBUNTU);
    if let Err(said) = release.resolve(&[required, optional].concat()) {
        panic!("{UBUNTU}: {said}");
    }
    assert!(release.resolve(&["no-such-package".to_owned()]).is_err());
}

#[test]
fn every_list_of_packages_is_resolved_on_every_debian() {
    let fetched = std::thread::scope(|scope| {
        let fetches = DEBIAN.map(|suite| scope.spawn(move || Ok((suite, Release::debian(suite)?))));
        fetches.into_iter().map(|fetch| fetch.join().unwrap()).collect::<Result<BTreeMap<_, _>, String>>()
    });
    let releases = match fetched {
        Ok(releases) => releases,
        Err(reason) => {
            eprintln!("SKIPPED packages::every_list_of_packages_is_resolved_on_every_debian: {reason}");
            return;
        }
    };
    for (suite, release) in &releases {
        if let Err(said) = release.resolve(&lists(suite).0) {
            panic!("{suite}: {said}");
        }
    }
    let has = DEBIAN.map(|suite| releases[suite].has(&lists(suite).1));
    for package in &lists(DEBIAN[0]).1 {
        assert!(has.iter().any(|has| has.contains(package)), "no release has {package}");
    }
    // Why they are optional, and that this test sees what is missing.
    assert!(
        !has[0].contains(&"rustup".to_owned()) && !has[1].contains(&"unionfs-fuse".to_owned()),
        "{has:?}"
    );

    for name in Recipe::names() {
        let recipe = Recipe::built_in(name).unwrap();
        let release = releases.get(recipe.suite.as_str()).unwrap_or_else(|| {
            panic!("the recipe {name} is for {}, which this test does not fetch", recipe.suite)
        });
        if let Err(said) = release.resolve(&recipe.packages) {
            panic!("the recipe {name}: {said}");
        }
    }
}

#[test]
fn setup_and_the_bench_know_the_same_peers() {
    let sections = sections();
    let mut known: Vec<&str> = bench::scenario::Arm::PEERS
        .into_iter()
        .filter_map(|arm| Some(bench::workload::layers::peer::package(arm)?.1))
        .collect();
    known.dedup();
    assert!(sections["peers"].optional);
    assert_eq!(sections["peers"].packages, known);
}

#[test]
fn the_scripts_name_no_package_themselves() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let all: Vec<String> = sections().into_values().flat_map(|section| section.packages).collect();
    for script in ["setup", "kernels", "test", "reproduce", "build"] {
        let text = std::fs::read_to_string(root.join("ci").join(script)).unwrap();
        // Three in a row are a list.
        for line in text.lines() {
            let named =
                line.split([' ', ',', '(', ')']).filter(|word| all.iter().any(|package| package == word));
            assert!(named.count() < 3, "ci/{script}: {line}");
        }
    }
}
