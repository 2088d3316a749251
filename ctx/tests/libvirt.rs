//! The libvirt layer against libvirt's own test driver and a real QEMU.

// Helpers outside of `#[test]` functions fail their test by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Guest, cdrom_xml, domain_xml, embed, wait_for};
use ctx::libvirt::{
    Connection, ErrorKind, EventKind, Lifecycle, MigrateOptions, Resumed, Running, Scope, Started, State,
    Stopped, Suspended, Tray,
};

fn lifecycle(kind: &EventKind) -> Option<Lifecycle> {
    if let EventKind::Lifecycle(lifecycle) = kind { Some(*lifecycle) } else { None }
}

#[test]
fn the_test_driver_tells_of_a_life() {
    let connection = Connection::open("test:///default").unwrap();
    let mut events = connection.subscribe().unwrap();
    let domain = connection.domain("test").unwrap();
    assert!(matches!(domain.state().unwrap(), State::Running(Running::Other(_))));
    domain.suspend().unwrap();
    domain.resume().unwrap();
    domain.destroy().unwrap();
    assert_eq!(wait_for(&mut events, "test", lifecycle), Lifecycle::Suspended(Suspended::Paused));
    assert_eq!(wait_for(&mut events, "test", lifecycle), Lifecycle::Resumed(Resumed::Unpaused));
    assert_eq!(wait_for(&mut events, "test", lifecycle), Lifecycle::Stopped(Stopped::Destroyed));
    assert!(connection.is_alive());
}

#[test]
fn every_subscriber_gets_every_event_until_it_leaves() {
    let connection = Connection::open("test:///default").unwrap();
    let mut first = connection.subscribe().unwrap();
    let second = connection.clone().subscribe().unwrap();
    drop(second);
    connection.domain("test").unwrap().suspend().unwrap();
    assert_eq!(wait_for(&mut first, "test", lifecycle), Lifecycle::Suspended(Suspended::Paused));
    drop(connection);
    // The hub is gone with the connection, so the channel ends instead of blocking for ever.
    while first.blocking_recv().is_some() {}
}

#[test]
fn errors_say_what_of_whom_and_where() {
    let error = Connection::open("test:///default").unwrap().domain("nobody").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoDomain);
    assert_eq!(error.domain(), Some("nobody"));
    assert_eq!(error.uri(), "test:///default");
    assert!(error.code().is_some() && error.to_string().contains("`nobody`"), "{error}");

    let error = Connection::open("qemu+unix:///system?socket=/nonexistent/socket").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection, "{error}");
    assert!(Connection::open("test:///default\0").is_err());
}

#[test]
fn no_job_is_an_error_and_not_a_crash() {
    let Some(connection) = embed("no_job_is_an_error_and_not_a_crash") else { return };
    let guest = Guest::create(&connection, &domain_xml("nojob", "", ""));
    for error in [guest.0.job_stats().unwrap_err(), guest.0.completed_job_stats(true).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::NoJob, "{error}");
        assert_eq!(error.domain(), Some("nojob"));
    }
    assert_eq!(guest.0.abort_job().unwrap_err().kind(), ErrorKind::InvalidState);
    guest.0.set_max_downtime_ms(321).unwrap();
    assert_eq!(guest.0.max_downtime_ms().unwrap(), 321);
}

#[test]
fn a_cdrom_comes_and_goes_with_events() {
    let Some(connection) = embed("a_cdrom_comes_and_goes_with_events") else { return };
    let mut events = connection.subscribe().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("1.iso"), dir.path().join("2.iso"));
    std::fs::write(&one, vec![1; 4096]).unwrap();
    std::fs::write(&two, vec![2; 4096]).unwrap();

    let guest = Guest::create(&connection, &domain_xml("cdrom", "", ""));
    let started = |kind: &EventKind| lifecycle(kind).filter(|l| matches!(l, Lifecycle::Started(_)));
    assert_eq!(wait_for(&mut events, "cdrom", started), Lifecycle::Started(Started::Booted));

    guest.0.attach_device(&cdrom_xml("sdb", &one), Scope::Live).unwrap();
    let alias = wait_for(&mut events, "cdrom", |kind| match kind {
        EventKind::DeviceAdded { alias } => Some(alias.clone()),
        _ => None,
    });
    assert!(guest.0.xml().unwrap().contains("1.iso"));

    let taken = guest.0.attach_device(&cdrom_xml("sdb", &two), Scope::Live).unwrap_err();
    assert_eq!(taken.domain(), Some("cdrom"), "{taken}");
    assert!(taken.message().contains("target sdb is taken"), "{taken}");
    // With libvirt 10 and newer this would be a change of medium.
    assert!(guest.0.xml().unwrap().contains("1.iso") && !guest.0.xml().unwrap().contains("2.iso"));

    guest.0.detach_device_by_alias(&alias, Scope::Live).unwrap();
    let removed = wait_for(&mut events, "cdrom", |kind| match kind {
        EventKind::DeviceRemoved { alias } => Some(alias.clone()),
        _ => None,
    });
    assert_eq!(removed, alias);
    let gone = guest.0.detach_device(&cdrom_xml("sdb", &two), Scope::Live).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NoDevice, "{gone}");
}

#[test]
fn a_medium_is_changed_with_tray_events() {
    let Some(connection) = embed("a_medium_is_changed_with_tray_events") else { return };
    let mut events = connection.subscribe().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("1.iso"), dir.path().join("2.iso"));
    std::fs::write(&one, vec![1; 4096]).unwrap();
    std::fs::write(&two, vec![2; 4096]).unwrap();
    // There from the start: libvirt 9.0 does not open the tray of a CD-ROM that was attached later.
    let guest = Guest::paused(&connection, &domain_xml("medium", "", &cdrom_xml("sda", &one)));
    guest.0.update_device(&cdrom_xml("sda", &two), Scope::Live, false).unwrap();
    for expected in [Tray::Opened, Tray::Closed] {
        let tray = wait_for(&mut events, "medium", |kind| match kind {
            EventKind::TrayChange { tray, .. } => Some(*tray),
            _ => None,
        });
        assert_eq!(tray, expected);
    }
    assert!(guest.0.xml().unwrap().contains("2.iso"));
}

#[test]
fn metadata_is_set_read_and_missed() {
    let Some(connection) = embed("metadata_is_set_read_and_missed") else { return };
    let guest = Guest::create(&connection, &domain_xml("metadata", "", ""));
    assert_eq!(guest.0.metadata("urn:x").unwrap_err().kind(), ErrorKind::NoMetadata);
    guest.0.set_metadata("<x a='1'/>", "x", "urn:x", Scope::Live).unwrap();
    assert!(guest.0.metadata("urn:x").unwrap().contains("a=\"1\""));
    assert!(guest.0.xml().unwrap().contains("urn:x"));
}

#[test]
fn a_migration_that_cannot_start_is_an_error_and_the_guest_stays() {
    let Some(connection) = embed("a_migration_that_cannot_start_is_an_error_and_the_guest_stays") else {
        return;
    };
    let guest = Guest::create(&connection, &domain_xml("stays", "", ""));
    let options = MigrateOptions { uri: Some("tcp://127.0.0.1:1".into()), ..MigrateOptions::default() };
    let error = guest.0.migrate(&connection, &options).unwrap_err();
    assert_eq!(error.domain(), Some("stays"));
    assert!(error.code().is_some(), "{error}");
    let error = guest.0.migrate_to_uri("qemu+unix:///system?socket=/nonexistent", &options).unwrap_err();
    assert!(!error.message().is_empty());
    assert!(matches!(guest.0.state().unwrap(), State::Running(Running::Other(_))));
    let status = guest.0.qemu_monitor_command(r#"{"execute":"query-status"}"#).unwrap();
    assert!(status.contains("running"), "{status}");
}
