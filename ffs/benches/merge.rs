//! What a switch costs before the kernel is told: merging, and comparing with the tree before.

use std::hint::black_box;
use std::sync::Arc;
use std::time::SystemTime;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ffs::diff::diff;
use ffs::layer::{Content, Kind, Layer, LayerDir, LayerNode, Leaf, Meta, Name};
use ffs::merge::{Inodes, merge};

/// A layer of `dirs` directories of 100 files each.
fn layer(number: u16, dirs: usize) -> Arc<Layer> {
    let leaf = |_| {
        let meta = Meta { kind: Kind::File, ..Meta::bare_dir() };
        LayerNode::Leaf(Arc::new(Leaf::new(meta, Content::Empty)))
    };
    let name = |prefix: &str, i: usize| Name::from(format!("{prefix}{i:05}").as_bytes());
    let dir = |entries| Arc::new(LayerDir { entries, ..LayerDir::new(Meta::bare_dir()) });
    let files = |d: usize| (0..100).map(|i| (name(&format!("l{number}-{d}-"), i), leaf(i))).collect();
    let entries = (0..dirs).map(|d| (name("d", d), LayerNode::Dir(dir(files(d))))).collect();
    let root = dir(entries);
    Arc::new(Layer {
        name: format!("l{number}"),
        priority: number,
        origin: String::new(),
        class: None,
        generation: None,
        vouched: None,
        root,
    })
}

fn switches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("merge");
    for dirs in [1, 10, 100] {
        let layers: Vec<_> = (0..10).map(|number| layer(number, dirs)).collect();
        let files = dirs * 1000;
        group.bench_function(BenchmarkId::new("first", files), |bencher| {
            bencher.iter(|| merge(black_box(&layers), None, &Inodes::default(), SystemTime::UNIX_EPOCH));
        });
        let inodes = Inodes::default();
        let before = merge(&layers, None, &inodes, SystemTime::UNIX_EPOCH);
        // One small layer more: what a recontextualization does.
        let mut more = layers.clone();
        more.push(layer(100, 1));
        group.bench_function(BenchmarkId::new("one small layer more", files), |bencher| {
            bencher.iter(|| {
                let after = merge(black_box(&more), Some(&before), &inodes, SystemTime::UNIX_EPOCH);
                diff(&before, &after)
            });
        });
        // Two trees that share nothing: the most that there is to compare.
        let other = merge(&layers[..9], None, &Inodes::default(), SystemTime::UNIX_EPOCH);
        group.bench_function(BenchmarkId::new("diff of strangers", files), |bencher| {
            bencher.iter(|| diff(black_box(&before), &other));
        });
        let dir = format!("d{:05}", dirs - 1);
        let file = format!("l5-{}-00042", dirs - 1);
        group.bench_function(BenchmarkId::new("lookup", files), |bencher| {
            bencher.iter(|| match black_box(&before).get(dir.as_bytes()) {
                Some(ffs::merge::Node::Dir(dir)) => dir.get(file.as_bytes()).is_some(),
                _ => false,
            });
        });
    }
    group.finish();
}

criterion_group!(benches, switches);
criterion_main!(benches);
