//! What a switch costs on a real mount, until the new content is read; what reading a directory layer
//! costs. Needs root and `/dev/fuse`; without them nothing is measured.

#![allow(clippy::print_stderr)] // Why it is skipped.

use std::path::Path;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ffs::layer::{Layer, dir};
use ffs::mount::Mount;

fn made(at: &Path, files: usize, content: &str) {
    for i in 0..files {
        let dir = at.join(format!("d{:03}", i / 100));
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        std::fs::write(dir.join(format!("f{i:06}")), content).expect("a temporary file");
    }
}

fn layer(at: &Path, name: &str, priority: u16) -> Arc<Layer> {
    Arc::new(dir::layer(at, name, priority).expect("a layer of files just made"))
}

fn switches(criterion: &mut Criterion) {
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED switches: need root and /dev/fuse");
        return;
    }
    let base = tempfile::tempdir().expect("a temporary directory");
    let mut group = criterion.benchmark_group("switch");
    // Others that stay, and how many files the one that changes has.
    let cases = [(1, 10), (10, 10), (50, 10), (1, 100), (1, 1000), (1, 5000)];
    for (layers, files) in cases {
        let here = base.path().join(format!("{layers}-{files}"));
        let stay: Vec<_> = (0..layers)
            .map(|i| {
                let at = here.join(i.to_string());
                made(&at, 100, "stays");
                layer(&at, &format!("stay{i}"), i)
            })
            .collect();
        let versions = ["one", "two"].map(|content| {
            let at = here.join(content);
            made(&at, files, content);
            layer(&at, "changes", 100)
        });
        let point = here.join("mnt");
        std::fs::create_dir(&point).expect("a temporary directory");
        let with = |version: &Arc<Layer>| [stay.as_slice(), std::slice::from_ref(version)].concat();
        let (mount, session) = Mount::new(&point, with(&versions[0])).expect("a mount");
        let all: Vec<_> = (0..files).map(|i| point.join(format!("d{:03}/f{i:06}", i / 100))).collect();
        let mut turn = 0;
        group.bench_function(BenchmarkId::new(format!("{layers} layers stay"), files), |bencher| {
            bencher.iter_custom(|times| {
                let mut spent = std::time::Duration::ZERO;
                for _ in 0..times {
                    // The kernel has everything cached that will not be true.
                    for path in &all {
                        drop(path.metadata());
                    }
                    turn += 1;
                    let start = std::time::Instant::now();
                    mount.switch(|_| with(&versions[turn % 2]));
                    let seen = std::fs::read(&all[0]).expect("a file of the mount");
                    spent += start.elapsed();
                    assert_eq!(seen, ["one", "two"][turn % 2].as_bytes());
                }
                spent
            });
        });
        // Few names are told before this returns; more are told behind it.
        if files <= 100 {
            group.bench_function(BenchmarkId::new(format!("{layers} layers stay, told"), files), |bencher| {
                bencher.iter(|| {
                    turn += 1;
                    let switch = mount.switch(|_| with(&versions[turn % 2]));
                    mount.tell_watchers(&switch);
                });
            });
        }
        mount.unmount().expect("an unmount");
        session.wait().expect("the end of the session");
    }
    group.finish();
}

fn scans(criterion: &mut Criterion) {
    let base = tempfile::tempdir().expect("a temporary directory");
    let mut group = criterion.benchmark_group("read a directory layer");
    for (files, bytes) in [(16, 4096), (100, 300), (10_000, 300)] {
        let at = base.path().join(files.to_string());
        made(&at, files, &"x".repeat(bytes));
        group.throughput(Throughput::Elements(files as u64));
        group.bench_function(BenchmarkId::from_parameter(files), |bencher| {
            bencher.iter(|| layer(&at, "l", 1));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = switches, scans
}
criterion_main!(benches);
