use std::collections::BTreeMap;

use ctx_format::sign::SecretKey;
use ctx_format::{ContextData, File, ImageOptions, Priority, read, write_signed_iso};

use super::*;

fn image(generation: u64, content: &str) -> Vec<u8> {
    let data = ContextData {
        class: "infrastructure".parse().unwrap(),
        priority: Priority(1),
        generation,
        instance_id: "i-1".parse().unwrap(),
        files: [("site".parse().unwrap(), File::private(content))].into(),
    };
    let key = SecretKey::from_seed(&[1; 32]);
    write_signed_iso(&data, &ImageOptions::default(), Some(&key)).unwrap()
}

fn config(dir: &Path) -> Config {
    let key = SecretKey::from_seed(&[1; 32]).public();
    std::fs::write(dir.join("a.pub"), format!("# the site's\n\n{key} note\n")).unwrap();
    Config {
        trust: vec![format!("{}/*.pub", dir.display())],
        trust_state: Some(dir.join("state/accepted.json")),
        ..Config::default()
    }
}

/// The layer of an image, where it is taken.
fn read(trust: &Trust, image: &[u8]) -> Result<Layer, Reason> {
    let index = read::index(image).unwrap();
    let (checked, vouched) = trust.admit(&index, image).map_err(|refusal| refusal.reason)?.unwrap();
    let (meta, entries) = (crate::layer::Meta::bare_dir(), BTreeMap::new());
    let root = crate::layer::LayerDir { meta, opaque: false, xattrs: Box::default(), entries }.into();
    let (name, origin, class) = ("i".to_owned(), String::new(), Some(checked.manifest.class));
    let generation = Some(checked.manifest.generation);
    Ok(Layer { name, priority: 1, origin, class, generation, vouched, root })
}

fn named(name: &str, layer: Layer) -> Layer {
    Layer { name: name.to_owned(), ..layer }
}

/// The same keys, and nothing accepted.
fn fresh(config: &Config) -> Trust {
    let nowhere = Config { trust_state: Some("/nonexistent/accepted.json".into()), ..config.clone() };
    Trust::new(&nowhere, Path::new("/")).unwrap()
}

/// A layer of generation 7 of another class.
fn service(trust: &Trust) -> Layer {
    let of = |layer| Layer { class: Some("service".parse().unwrap()), generation: Some(7), ..layer };
    named("s", of(read(trust, &image(9, "s")).unwrap()))
}

/// Takes an image and shows it.
fn admit(trust: &Trust, image: &[u8]) -> Result<(), Reason> {
    trust.accept(&[&read(trust, image)?], &[]).map_err(|rejected| rejected.reason)
}

#[test]
fn only_what_is_shown_counts_and_a_rollback_is_an_order() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let trust = Trust::new(&config, dir.path()).unwrap();
    let (one, two) = (read(&trust, &image(1, "a")).unwrap(), read(&trust, &image(2, "b")).unwrap());
    // Both were read, and neither is shown.
    assert!(read(&trust, &image(1, "a")).is_ok() && !dir.path().join("state").exists());
    trust.accept(&[&two], &[]).unwrap();
    assert!(matches!(
        trust.may_show(&[&one], &[]),
        Err(Rejected { reason: Reason::Older { accepted: 2, .. }, .. })
    ));
    assert!(matches!(
        trust.accept(&[&one], &[]),
        Err(Rejected { reason: Reason::Older { accepted: 2, .. }, .. })
    ));
    trust.accept_rollback(&[&one]).unwrap();
    let later = Trust::new(&config, dir.path()).unwrap();
    assert!(admit(&later, &image(1, "a")).is_ok());
    assert!(matches!(admit(&later, &image(1, "b")), Err(Reason::Other { generation: 1, .. })));
    assert!(admit(&later, &image(2, "b")).is_ok());
}

#[test]
fn two_images_of_a_class_exclude_one_another_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let trust = Trust::new(&config(dir.path()), dir.path()).unwrap();
    let one = named("one", read(&trust, &image(1, "a")).unwrap());
    let two = named("two", read(&trust, &image(2, "b")).unwrap());
    // The last one is refused, and the reason is not what was accepted: nothing was.
    for (news, stay, refused) in [
        (&[&one, &two][..], &[][..], "two"),
        (&[&two, &one], &[], "one"),
        (&[&two], &[&one], "two"),
        (&[&one], &[&two], "one"),
    ] {
        for verdict in [trust.may_show(news, stay), trust.accept(news, stay)] {
            let Err(Rejected { layer, reason: Reason::Beside(beside) }) = verdict else {
                panic!("{verdict:?}");
            };
            assert_eq!((layer.as_str(), beside.layer.as_str()), (refused, refused));
            assert_ne!(beside.other, refused);
        }
    }
    assert!(!dir.path().join("state/accepted.json").exists(), "the ledger stays");
    // The same image may be there twice.
    trust.accept(&[&one, &named("again", one.clone())], &[]).unwrap();
}

#[test]
fn of_several_layers_the_one_is_named_that_something_speaks_against() {
    let dir = tempfile::tempdir().unwrap();
    let trust = Trust::new(&config(dir.path()), dir.path()).unwrap();
    let (one, two) = (read(&trust, &image(1, "a")).unwrap(), read(&trust, &image(2, "b")).unwrap());
    let plain = Layer { vouched: None, class: None, generation: None, ..named("plain", one.clone()) };
    trust.accept(&[&two], &[]).unwrap();
    let refused = trust.accept(&[&one, &plain], &[]).unwrap_err();
    assert!(matches!(refused, Rejected { layer, reason: Reason::Older { .. } } if layer == one.name));
    trust.accept(&[&plain], &[&two]).unwrap();
}

/// Two processes with one state, both of which have accepted generation 2.
fn two_processes(dir: &Path) -> (Config, [Trust; 2]) {
    let config = config(dir);
    let trusts = [(), ()].map(|()| {
        let trust = Trust::new(&config, dir).unwrap();
        admit(&trust, &image(2, "b")).unwrap();
        trust
    });
    (config, trusts)
}

#[test]
fn a_rollback_is_not_undone_by_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let (config, [one, other]) = two_processes(dir.path());
    let back = read(&fresh(&config), &image(1, "a")).unwrap();
    one.accept_rollback(&[&back]).unwrap();
    // It had not heard of that, and notes something else.
    other.accept(&[&service(&other)], &[]).unwrap();
    let later = Trust::new(&config, dir.path()).unwrap();
    assert!(admit(&later, &image(1, "a")).is_ok(), "the rollback stays");
    let older = later.accept(&[&Layer { generation: Some(3), ..service(&later) }], &[]);
    assert!(matches!(older, Err(Rejected { reason: Reason::Older { .. }, .. })), "and so does the other's");
    // It knows of it from then on, also what is read.
    assert!(read(&other, &image(1, "a")).is_ok());
}

#[test]
fn a_rollback_that_could_not_be_written_is_written_with_the_next_change() {
    let dir = tempfile::tempdir().unwrap();
    let (config, [trust, other]) = two_processes(dir.path());
    let back = read(&fresh(&config), &image(1, "a")).unwrap();
    let state = dir.path().join("state");
    let aside = dir.path().join("aside");
    std::fs::rename(&state, &aside).unwrap();
    std::fs::write(&state, "").unwrap();
    trust.accept_rollback(&[&back]).unwrap();
    assert!(trust.reduced().unwrap().contains("a rollback holds, only until ffs ends"));
    std::fs::remove_file(&state).unwrap();
    std::fs::rename(&aside, &state).unwrap();
    trust.accept(&[&service(&trust)], &[]).unwrap();
    assert_eq!(trust.reduced(), None);
    assert!(admit(&Trust::new(&config, dir.path()).unwrap(), &image(1, "a")).is_ok());
    assert!(read(&other, &image(1, "a")).is_ok());
}

#[test]
fn a_state_that_is_damaged_in_use_is_left_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let trust = Trust::new(&config(dir.path()), dir.path()).unwrap();
    admit(&trust, &image(2, "b")).unwrap();
    let path = dir.path().join("state/accepted.json");
    std::fs::write(&path, "{").unwrap();
    assert!(admit(&trust, &image(1, "a")).is_err());
    admit(&trust, &image(3, "c")).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{");
    assert!(trust.reduced().unwrap().contains("remove it to begin anew"));
    std::fs::remove_file(&path).unwrap();
    admit(&trust, &image(3, "c")).unwrap();
    assert_eq!(trust.reduced(), None);
}

#[test]
fn generations_never_go_back_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let trust = Trust::new(&config, dir.path()).unwrap();
    admit(&trust, &image(5, "a")).unwrap();
    for trust in [trust, Trust::new(&config, dir.path()).unwrap()] {
        admit(&trust, &image(5, "a")).unwrap();
        assert!(matches!(admit(&trust, &image(5, "b")), Err(Reason::Other { generation: 5, .. })));
        assert!(matches!(admit(&trust, &image(4, "a")), Err(Reason::Older { accepted: 5, .. })));
        assert_eq!(trust.reduced(), None);
    }
    let later = Trust::new(&config, dir.path()).unwrap();
    admit(&later, &image(6, "b")).unwrap();
    assert!(admit(&later, &image(5, "a")).is_err());
}

#[test]
fn where_nothing_can_be_written_it_holds_for_the_process_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let config = Config { trust_state: Some(dir.path().join("file/accepted.json")), ..config(dir.path()) };
    let trust = Trust::new(&config, dir.path()).unwrap();
    admit(&trust, &image(5, "a")).unwrap();
    assert!(admit(&trust, &image(4, "a")).is_err());
    assert!(trust.reduced().unwrap().contains("only until ffs ends"));
    // Once it can be written, it is.
    std::fs::remove_file(dir.path().join("file")).unwrap();
    admit(&trust, &image(5, "a")).unwrap();
    assert_eq!(trust.reduced(), None);
    assert!(admit(&Trust::new(&config, dir.path()).unwrap(), &image(4, "a")).is_err());
}

#[test]
fn another_program_trusts_the_same() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let config = Config { trust_state: Some(dir.path().join("file/accepted.json")), ..config(dir.path()) };
    let trust = Trust::new(&config, dir.path()).unwrap();
    admit(&trust, &image(5, "a")).unwrap();
    // Neither the keys nor what was accepted can be read from a file any more.
    std::fs::remove_file(dir.path().join("a.pub")).unwrap();
    let next = Trust::resume(&config, dir.path(), &trust.to_state()).unwrap();
    assert!(matches!(admit(&next, &image(4, "a")), Err(Reason::Older { accepted: 5, .. })));
    assert!(admit(&next, &image(6, "b")).is_ok());
    assert_eq!(next.to_state().keys, trust.to_state().keys);
    assert!(next.reduced().is_some());
    let without = Trust::resume(&Config::default(), dir.path(), &Trust::without_keys().to_state()).unwrap();
    admit(&without, &image(1, "a")).unwrap();
}

#[test]
fn another_machines_image_is_refused_where_the_machine_knows_itself() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { instance: Some("i-2".to_owned()), ..config(dir.path()) };
    let trust = Trust::new(&config, dir.path()).unwrap();
    assert!(matches!(admit(&trust, &image(1, "a")), Err(Reason::Instance { .. })));
}

#[test]
fn what_cannot_be_trusted_ends_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let good = config(dir.path());
    let start = |config: &Config| Trust::new(config, dir.path()).unwrap_err().to_string();
    let missing = Config { trust: vec!["/nonexistent/k.pub".to_owned()], ..good.clone() };
    assert!(start(&missing).contains("/nonexistent/k.pub"));
    let none = Config { trust: vec![format!("{}/*.none", dir.path().display())], ..good.clone() };
    assert!(start(&none).contains("names no key"));
    std::fs::create_dir_all(dir.path().join("state")).unwrap();
    std::fs::write(dir.path().join("state/accepted.json"), "{").unwrap();
    assert!(start(&good).contains("remove it to begin anew"));
    std::fs::write(dir.path().join("b.pub"), "ssh-ed25519 AAAA\n").unwrap();
    assert!(start(&good).contains("b.pub`, line 1: not a public key"));
    // Without keys the state is nobody's business.
    Trust::new(&Config { trust: Vec::new(), ..good }, dir.path()).unwrap();
}

#[test]
fn a_key_that_is_removed_vouches_for_nothing_more() {
    let dir = tempfile::tempdir().unwrap();
    let trust = Trust::new(&config(dir.path()), dir.path()).unwrap();
    admit(&trust, &image(1, "a")).unwrap();
    let (earlier, read_before) =
        (read(&trust, &image(1, "a")).unwrap(), read(&trust, &image(2, "b")).unwrap());
    let other = SecretKey::from_seed(&[2; 32]).public();
    let own = SecretKey::from_seed(&[1; 32]).public().for_classes(["service".parse().unwrap()]);
    for keys in [other.to_string(), own.to_string()] {
        std::fs::write(dir.path().join("a.pub"), keys).unwrap();
        trust.reload().unwrap();
        assert!(matches!(admit(&trust, &image(2, "b")), Err(Reason::Check(_))));
        // Nor what was read while it did, or shown.
        assert!(matches!(
            trust.accept(&[&read_before], &[&earlier]),
            Err(Rejected { reason: Reason::Revoked(_), .. })
        ));
        assert!(matches!(
            trust.may_show(&[&read_before], &[]),
            Err(Rejected { reason: Reason::Revoked(_), .. })
        ));
        assert!(matches!(
            trust.accept_rollback(&[&earlier]),
            Err(Rejected { reason: Reason::Revoked(_), .. })
        ));
    }
    std::fs::remove_file(dir.path().join("a.pub")).unwrap();
    assert!(trust.reload().is_err());
    assert!(matches!(admit(&trust, &image(2, "b")), Err(Reason::Check(_))));
}
