//! What is written is read again, and what is not understood is refused.

use std::os::unix::ffi::OsStringExt;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::ack::AckMode;
use crate::config::Source;

fn bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        "[a-z%. /é]{0,12}".prop_map(|text| Bytes::from(&text)),
        vec(any::<u8>(), 0..12).prop_map(|bytes| Bytes::from(&bytes)),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Dir),
        Just(Kind::File),
        Just(Kind::Symlink),
        Just(Kind::CharDevice),
        Just(Kind::BlockDevice),
        Just(Kind::Fifo),
        Just(Kind::Socket),
    ]
}

prop_compose! {
    fn meta()(
        kind in kind(),
        (perm, uid, gid) in any::<(u16, u32, u32)>(),
        (size, blocks, links) in any::<(u64, u64, u32)>(),
        (modified, changed) in any::<((i64, u32), (i64, u32))>(),
        device in any::<(u32, u32)>(),
    ) -> Meta {
        let (modified, changed) = (Time(modified.0, modified.1), Time(changed.0, changed.1));
        Meta(kind, perm, uid, gid, size, blocks, links, modified, changed, device)
    }
}

fn stamp() -> impl Strategy<Value = Stamp> {
    any::<(u64, u64, u64, (i64, i64))>()
        .prop_map(|(device, inode, size, change)| Stamp(device, inode, size, change))
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        (any::<At>(), vec(any::<(u64, u64)>(), 0..3)).prop_map(|(at, ranges)| Content::Sealed(at, ranges)),
        (any::<Fd>(), stamp()).prop_map(|(fd, stamp)| Content::Held(fd, stamp)),
        (any::<At>(), bytes(), stamp()).prop_map(|(at, path, stamp)| Content::Path(at, path, stamp)),
        bytes().prop_map(Content::Target),
        Just(Content::Empty),
    ]
}

fn xattrs() -> impl Strategy<Value = Xattrs> {
    vec((bytes(), bytes()), 0..3)
}

fn layer_node() -> impl Strategy<Value = LayerNode> {
    prop_oneof![
        any::<At>().prop_map(LayerNode::Dir),
        any::<At>().prop_map(LayerNode::Leaf),
        Just(LayerNode::Whiteout)
    ]
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![any::<At>().prop_map(Node::Dir), any::<At>().prop_map(Node::File)]
}

fn class() -> impl Strategy<Value = ClassName> {
    "[a-z][a-z0-9]{0,8}".prop_map(|name| name.parse().unwrap())
}

prop_compose! {
    fn layer()(
        (name, origin) in ("\\PC{0,8}", "\\PC{0,8}"),
        (priority, generation, root) in any::<(u16, Option<u64>, At)>(),
        class in option::of(class()),
        vouched in option::of(("[0-9a-f]{64}", "[0-9a-f]{16}")),
    ) -> Layer {
        let vouched = vouched.map(|(manifest, key)| Vouched { manifest: manifest.parse().unwrap(), key: key.parse().unwrap() });
        Layer { name, priority, origin, class, generation, vouched, root }
    }
}

prop_compose! {
    fn layer_dir()(
        meta in meta(),
        opaque in any::<bool>(),
        xattrs in xattrs(),
        entries in vec((bytes(), layer_node()), 0..4),
    ) -> LayerDir {
        LayerDir { meta, opaque, xattrs, entries }
    }
}

prop_compose! {
    fn dir()(
        ino in any::<u64>(),
        meta in meta(),
        entries in vec((bytes(), node()), 0..4),
        sources in vec(("\\PC{0,8}", any::<At>()), 0..3),
    ) -> Dir {
        Dir { ino, meta, entries, sources }
    }
}

fn generation() -> impl Strategy<Value = Generation> {
    let earlier = (bytes(), any::<Option<At>>(), vec(any::<u64>(), 0..3))
        .prop_map(|(name, state, dirs)| Earlier(name, state, dirs));
    (any::<u64>(), vec(any::<At>(), 0..3), any::<At>(), proptest::option::of(earlier))
        .prop_map(|(number, layers, root, earlier)| Generation { number, layers, root, earlier })
}

prop_compose! {
    fn desired()(
        names in vec(("[a-z]{1,6}", bytes(), 0_usize..3, any::<Option<u16>>(), any::<bool>()), 0..3),
        ranks in proptest::collection::btree_map("[a-z]{1,6}", any::<u16>(), 0..3),
    ) -> Desired {
        let layers = names.into_iter().map(|(name, path, kind, priority, watch)| {
            let make: [fn(std::path::PathBuf) -> Source; 3] = [Source::Dir, Source::Iso, Source::Device];
            let path = std::ffi::OsString::from_vec([b"/", &*path.0].concat());
            LayerSpec { name, source: make[kind](path.into()), priority, watch }
        });
        Desired { layers: layers.collect(), ranks }
    }
}

prop_compose! {
    fn tree()(
        sealed in vec(any::<Fd>(), 0..3),
        bases in vec(any::<Fd>(), 0..3),
        leaves in vec((meta(), xattrs(), content()).prop_map(|(a, b, c)| Leaf(a, b, c)), 0..4),
        layer_dirs in vec(layer_dir(), 0..4),
        layers in vec(layer(), 0..3),
        files in vec((any::<(u64, At)>(), "\\PC{0,8}").prop_map(|((ino, leaf), layer)| File(ino, leaf, layer)), 0..4),
        dirs in vec(dir(), 0..4),
        shown in generation(),
        before in option::of((generation(), desired())),
        next_inode in any::<u64>(),
        linked in vec(any::<At>(), 0..3),
    ) -> Tree {
        Tree { sealed, bases, leaves, layer_dirs, layers, files, dirs, shown, before, next_inode, linked }
    }
}

fn ack() -> impl Strategy<Value = AckMode> {
    prop_oneof![
        Just(AckMode::Auto),
        Just(AckMode::Off),
        Just(AckMode::Xenstore),
        option::of("/[a-z]{1,6}").prop_map(|path| AckMode::VirtioSerial(path.map(Into::into))),
        "/[a-z]{1,6}".prop_map(|path| AckMode::File(path.into())),
    ]
}

fn due() -> impl Strategy<Value = Due> {
    prop_oneof![
        "[a-z]{1,4}".prop_map(Due::Retry),
        ("[a-z]{1,4}", "[a-z]{1,4}").prop_map(|(layer, device)| Due::DropLayer { layer, device }),
        Just(Due::Poll),
    ]
}

fn acks() -> impl Strategy<Value = Acks> {
    let state = (class(), any::<u64>(), any::<Option<u64>>(), any::<bool>()).prop_map(
        |(class, generation, waits, told)| AckState { ack: Ack::applied(class, generation), waits, told },
    );
    let port =
        (any::<Fd>(), any::<bool>(), bytes()).prop_map(|(fd, connected, rest)| Port { fd, connected, rest });
    (vec(state, 0..3), vec(("[a-z]{1,4}", class(), any::<u64>()), 0..3), option::of(port)).prop_map(
        |(states, claims, port)| {
            let classes = claims.iter().map(|(name, class, _)| (name.clone(), class.clone())).collect();
            Acks { states, claims, classes, hooks: Vec::new(), port }
        },
    )
}

prop_compose! {
    fn daemon()(
        desired in desired(),
        ack_mode in ack(),
        held in proptest::collection::btree_map("[a-z]{1,4}", (any::<Option<u64>>(), "[0-9a-f]{0,8}"), 0..3),
        refused in proptest::collection::btree_map("[a-z]{1,4}", "\\PC{0,9}", 0..3),
        devices in proptest::collection::btree_map(
            "[a-z]{1,4}",
            (any::<u32>(), "\\PC{0,9}").prop_map(|(attempt, state)| Device { attempt, state }),
            0..3,
        ),
        due in vec((any::<u64>(), due()), 0..3),
        waiting in option::of((any::<u64>(), vec(bytes(), 0..3))),
        (log, uevents, listener, asker) in any::<(Option<Fd>, Option<Fd>, Fd, Option<Fd>)>(),
        path in bytes(),
        ack in option::of(acks()),
        (taken_over, stopped_ns) in any::<(u64, u64)>(),
    ) -> Daemon {
        Daemon {
            config: Config { layers: desired.layers.clone(), ack: ack_mode, ..Config::default() },
            desired,
            held,
            refused,
            devices,
            unread: vec!["sr0".to_owned()],
            due,
            hooks: Hooks { outcomes: Vec::new(), waiting },
            trust: Trust { keys: None, accepted: serde_json::json!({"accepted": {}}), unwritten: None },
            log,
            uevents,
            control: Control { path, listener, asker },
            ack,
            taken_over,
            stopped_ns,
        }
    }
}

prop_compose! {
    fn state()(
        point in bytes(),
        (fuse, device, users_mount) in any::<(Fd, u64, bool)>(),
        (major, minor, taken, refused_writes) in any::<(u32, u32, u64, u64)>(),
        private in prop_oneof![
            any::<(Fd, u64)>().prop_map(|(root, stand_in)| Ok(PrivateMount { root, stand_in })),
            "\\PC{0,9}".prop_map(Err),
        ],
        tree in tree(),
        known in vec((node(), any::<u64>()), 0..4),
        ways in vec((any::<u64>(), prop_oneof![Just(Way::Asked), any::<u32>().prop_map(Way::Passed)]), 0..3),
        covered in vec((any::<u64>(), bytes(), bytes(), node()), 0..3),
        kernel in (any::<u64>(), vec(any::<(u64, At)>(), 0..3), any::<bool>()),
        daemon in daemon(),
    ) -> State {
        let agreed = Agreed { major, minor, taken };
        let (next_handle, open_dirs, stale) = kernel;
        State {
            version: "0.1.0".to_owned(),
            point,
            connection: Connection { fuse, device, agreed, private, users_mount, refused_writes },
            tree,
            kernel: Kernel { known, ways, next_handle, open_dirs, covered, stale },
            daemon,
        }
    }
}

fn written(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.write(&mut bytes).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_is_read(state in state()) {
        let bytes = written(&state);
        prop_assert_eq!(State::read(&bytes).unwrap(), state);
    }

    #[test]
    fn what_is_cut_off_or_damaged_is_refused_or_read_and_never_worse(
        state in state(),
        cut in any::<prop::sample::Index>(),
        damage in any::<(prop::sample::Index, u8)>(),
    ) {
        let bytes = written(&state);
        prop_assert!(State::read(&bytes[..cut.index(bytes.len())]).is_err());
        let mut bytes = bytes;
        let at = damage.0.index(bytes.len());
        bytes[at] = damage.1;
        if let Ok(read) = State::read(&bytes) {
            // Rebuilding checks what the types cannot.
            let _ = crate::handover::unpack(&read.connection, &read.tree, &read.kernel);
        }
    }

    #[test]
    fn times_come_back(seconds in -(1_i64 << 40)..1 << 40, nanos in 0_u32..1_000_000_000) {
        let time = Time(seconds, nanos);
        prop_assert_eq!(Time::from(SystemTime::from(time)), time);
    }

    #[test]
    fn bytes_come_back(raw in vec(any::<u8>(), 0..40)) {
        let bytes = Bytes::from(&raw);
        let text = serde_json::to_string(&bytes).unwrap();
        prop_assert!(text.is_ascii());
        prop_assert_eq!(serde_json::from_str::<Bytes>(&text).unwrap(), bytes);
    }
}

#[test]
fn another_format_is_refused_by_its_first_line() {
    let read = |text: &str| State::read(text.as_bytes()).unwrap_err().to_string();
    assert!(read("ffs state 1\nwhatever").contains("format 1"));
    assert!(read("ffs state 1\nwhatever").contains("restart the mount"));
    assert!(read("{}").contains("not a state"));
    assert!(read("ffs state x\n{}").contains("not a state"));
    assert!(read(&format!("ffs state {FORMAT}\n{{}}")).contains("missing field"));
}

#[test]
fn the_text_is_what_it_is_said_to_be() {
    let text = |bytes: &[u8]| serde_json::to_string(&Bytes::from(bytes)).unwrap();
    assert_eq!(text(b"plain name"), "\"plain name\"");
    assert_eq!(text(b"50%\n\xff"), "\"50%25%0a%ff\"");
    for bad in ["\"%\"", "\"%0\"", "\"%zz\"", "\"%+1\""] {
        assert!(serde_json::from_str::<Bytes>(bad).is_err(), "{bad}");
    }
}
