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

/// Takes an image and shows it.
fn admit(trust: &Trust, image: &[u8]) -> Result<(), Reason> {
    trust.accept([&read(trust, image)?], [])
}

#[test]
fn only_what_is_shown_counts_and_a_rollback_is_an_order() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    let trust = Trust::new(&config, dir.path()).unwrap();
    let (one, two) = (read(&trust, &image(1, "a")).unwrap(), read(&trust, &image(2, "b")).unwrap());
    // Both were read, and neither is shown.
    assert!(read(&trust, &image(1, "a")).is_ok() && !dir.path().join("state").exists());
    trust.accept([&two], []).unwrap();
    assert!(matches!(trust.may_show([&one], []), Err(Reason::Older { accepted: 2, .. })));
    assert!(matches!(trust.accept([&one], []), Err(Reason::Older { accepted: 2, .. })));
    trust.accept_rollback([&one]).unwrap();
    let later = Trust::new(&config, dir.path()).unwrap();
    assert!(admit(&later, &image(1, "a")).is_ok());
    assert!(matches!(admit(&later, &image(1, "b")), Err(Reason::Other { generation: 1, .. })));
    assert!(admit(&later, &image(2, "b")).is_ok());
}

#[test]
fn two_images_of_a_class_exclude_one_another_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let trust = Trust::new(&config(dir.path()), dir.path()).unwrap();
    let (one, two) = (read(&trust, &image(1, "a")).unwrap(), read(&trust, &image(2, "b")).unwrap());
    for pair in [[&one, &two], [&two, &one]] {
        assert!(matches!(trust.accept(pair, []), Err(Reason::Older { found: 1, accepted: 2, .. })));
    }
    trust.accept([&one, &one], []).unwrap();
    // Nor does one come beside the other.
    assert!(matches!(trust.accept([&two], [&one]), Err(Reason::Older { found: 1, accepted: 2, .. })));
    assert!(admit(&trust, &image(1, "a")).is_ok(), "the ledger stays");
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
        assert!(matches!(trust.accept([&read_before], [&earlier]), Err(Reason::Revoked(_))));
        assert!(matches!(trust.may_show([&read_before], []), Err(Reason::Revoked(_))));
        assert!(matches!(trust.accept_rollback([&earlier]), Err(Reason::Revoked(_))));
    }
    std::fs::remove_file(dir.path().join("a.pub")).unwrap();
    assert!(trust.reload().is_err());
    assert!(matches!(admit(&trust, &image(2, "b")), Err(Reason::Check(_))));
}
