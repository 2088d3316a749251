//! How long one image takes: the build phase of a recontextualization without its sources.
//!
//! Goal: at most 1 ms for 1 MiB (genisoimage takes 7 to 14 ms as a process).

// A benchmark that cannot make its input has nothing to measure.
#![allow(clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ctx_format::{ContextData, File, ImageOptions, Label, Priority, write_iso};

fn data(bytes: usize, files: usize) -> ContextData {
    let each = bytes / files;
    ContextData {
        class: "infrastructure".parse().unwrap(),
        priority: Priority(200),
        generation: 1,
        instance_id: "bench".parse().unwrap(),
        files: (0..files)
            .map(|n| (format!("dir{}/file{n}", n % 7).parse().unwrap(), File::private(vec![0x5a; each])))
            .collect(),
    }
}

fn iso(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("iso");
    for (name, bytes, files) in [("4KiB", 4 << 10, 1), ("1MiB", 1 << 20, 1), ("1MiB-100files", 1 << 20, 100)]
    {
        let data = data(bytes, files);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_with_input(BenchmarkId::new("write", name), &data, |bencher, data| {
            bencher.iter(|| write_iso(black_box(data), &ImageOptions { label: Label::Rectx }));
        });
        group.bench_with_input(BenchmarkId::new("manifest", name), &data, |bencher, data| {
            bencher.iter(|| black_box(data).manifest());
        });
    }
    group.finish();
}

criterion_group!(benches, iso);
criterion_main!(benches);
