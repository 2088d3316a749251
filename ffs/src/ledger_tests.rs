use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

fn digest(number: u8) -> Sha256 {
    format!("{number:02x}").repeat(32).parse().unwrap()
}

fn class(number: u8) -> ClassName {
    format!("c{number}").parse().unwrap()
}

/// Few of everything, so that they meet.
fn image() -> impl Strategy<Value = Image> {
    (0..4_u64, 0..2_u8).prop_map(|(generation, number)| Image { generation, manifest: digest(number) })
}

fn ledger() -> impl Strategy<Value = Ledger> {
    let accepted = (0..3_u64, image()).prop_map(|(rollbacks, Image { generation, manifest })| Accepted {
        rollbacks,
        generation,
        manifest,
    });
    btree_map((0..3_u8).prop_map(class), accepted, 0..3).prop_map(|accepted| Ledger { accepted })
}

fn joined(one: &Ledger, other: &Ledger) -> Ledger {
    let mut joined = one.clone();
    joined.join(other);
    joined
}

/// What a process does: whether it rolls back, the class, the image, and whether the file can be written then.
type Act = (bool, u8, Image, bool);

fn act() -> impl Strategy<Value = Act> {
    (any::<bool>(), 0..3_u8, image(), any::<bool>())
}

/// As `trust` does it. Whether the ledger took the image.
fn does(own: &mut Ledger, file: &mut Ledger, (rolls_back, of, image, writable): Act) -> bool {
    own.join(file);
    let took = if rolls_back {
        own.roll_back(&class(of), image);
        true
    } else {
        own.accept(&class(of), image).is_ok()
    };
    if writable {
        *file = own.clone();
    }
    took
}

proptest! {
    #[test]
    fn in_which_order_and_how_often_ledgers_are_joined_does_not_matter(a in ledger(), b in ledger(), c in ledger()) {
        prop_assert_eq!(joined(&a, &b), joined(&b, &a));
        prop_assert_eq!(joined(&a, &a), a.clone());
        prop_assert_eq!(joined(&joined(&a, &b), &b), joined(&a, &b));
        prop_assert_eq!(joined(&joined(&a, &b), &c), joined(&a, &joined(&b, &c)));
    }

    #[test]
    fn a_change_is_later_than_what_was_there(before in ledger(), act in act()) {
        let mut after = before.clone();
        let took = does(&mut after, &mut Ledger::default(), act);
        prop_assert_eq!(joined(&before, &after), after.clone());
        prop_assert_eq!(took, after.judge(&class(act.1), act.2).is_ok());
    }

    #[test]
    fn a_rollback_is_not_undone_by_what_another_process_notes_of_other_classes(
        file in ledger(),
        earlier in vec((any::<bool>(), act()), 0..4),
        back in image(),
        writable: bool,
        later in vec((any::<bool>(), act()), 0..6),
    ) {
        let (mut file, mut one, mut other) = (file.clone(), file.clone(), file);
        for (is_other, (rolls_back, of, image, writable)) in earlier {
            // Nobody can go back behind what nobody else has heard of.
            let own = if is_other { &mut other } else { &mut one };
            does(own, &mut file, (rolls_back, of, image, writable || is_other));
        }
        does(&mut one, &mut file, (true, 0, back, writable));
        for (is_other, (rolls_back, of, image, writable)) in later {
            let own = if is_other { &mut other } else { &mut one };
            does(own, &mut file, (rolls_back, of.max(1), image, writable));
        }
        // The one can write again at last.
        does(&mut one, &mut file, (false, 1, back, true));
        prop_assert_eq!(file.accepted[&class(0)].image(), back);
        prop_assert!(joined(&file, &other).judge(&class(0), back).is_ok());
    }

    #[test]
    fn the_file_reads_back(ledger in ledger()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/x.json");
        write(&path, &ledger, &lock(&path).unwrap()).unwrap();
        prop_assert_eq!(read(&path).unwrap(), ledger);
    }
}

#[test]
fn a_file_from_before_rollbacks_were_counted_is_read_and_written_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.json");
    let manifest = "ab".repeat(32);
    let text = format!(
        "{{\n  \"accepted\": {{\n    \"c0\": {{\n      \"generation\": 2,\n      \"manifest\": \"{manifest}\"\n    }}\n  }}\n}}\n"
    );
    std::fs::write(&path, &text).unwrap();
    let mut ledger = read(&path).unwrap();
    write(&path, &ledger, &lock(&path).unwrap()).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    ledger.roll_back(&class(0), Image { generation: 1, manifest: digest(1) });
    write(&path, &ledger, &lock(&path).unwrap()).unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().contains("\"rollbacks\": 1"));
}

#[test]
fn two_that_change_the_file_at_the_same_time_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.json");
    std::thread::scope(|scope| {
        for number in 0..8 {
            let path = &path;
            scope.spawn(move || {
                let lock = lock(path).unwrap();
                let mut ledger = read(path).unwrap();
                ledger.accept(&class(number), Image { generation: 1, manifest: digest(number) }).unwrap();
                write(path, &ledger, &lock).unwrap();
            });
        }
    });
    assert_eq!(read(&path).unwrap().accepted.len(), 8);
}

#[test]
fn a_lock_is_waited_for_until_a_deadline_and_goes_over_links() {
    let dir = tempfile::tempdir().unwrap();
    let (path, link) = (dir.path().join("x.json"), dir.path().join("link.json"));
    std::fs::write(&path, "").unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let held = lock(&link).unwrap();
    let beside = File::options().write(true).open(dir.path().join("x.json.lock")).unwrap();
    assert_eq!(lock_until(&beside, Instant::now()).unwrap_err().kind(), io::ErrorKind::TimedOut);
    drop(held);
    lock_until(&beside, Instant::now()).unwrap();
}
