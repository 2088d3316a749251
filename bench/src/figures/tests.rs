use std::{env, fs, path::PathBuf};

use super::{chart::Bar, *};
use crate::{stats::analyse, synthetic};

/// Where the pictures go: a folder to look at them, when `BENCH_FIGURES` names one.
fn keep(name: &str, svg: &str, png: &[u8]) {
    if let Some(folder) = env::var_os("BENCH_FIGURES").map(PathBuf::from) {
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name).with_extension("svg"), svg).unwrap();
        fs::write(folder.join(name).with_extension("png"), png).unwrap();
    }
}

fn context(profile: Option<&str>) -> Context {
    Context {
        scenario: "some-scenario".into(),
        runs: vec!["20261122T131500Z-1a2b3c4d".into()],
        profile: profile.map(str::to_owned),
        peers: crate::workload::layers::peer::Notes::new(),
    }
}

fn draw(name: &str, drawing: &Drawing) {
    let (first_svg, first_png) = (svg(drawing).unwrap(), png(drawing).unwrap());
    assert_eq!(svg(drawing).unwrap(), first_svg);
    assert!(first_svg.contains("font-family=\"DejaVu Sans, sans-serif\""));
    assert!(first_png.starts_with(b"\x89PNG"));
    keep(name, &first_svg, &first_png);
}

#[test]
fn all_figures_of_one_emulated_run() {
    for (file, figures) in [
        ("paper/migration-kvm.toml", [FigureId::Fig1, FigureId::Fig2]),
        ("paper/gluster-kvm.toml", [FigureId::Fig6, FigureId::Fig7]),
    ] {
        let scenario = synthetic::scenario(file, Some("quick"));
        let samples = synthetic::Machine::new("kvm", "tcg", 2.0).samples(&scenario);
        let analysis = analyse(&[("", &samples)]);
        for figure in figures {
            assert_eq!(figure.experiment(), scenario.experiment);
            draw(figure.name(), &figure.drawing(&analysis, &context(Some("quick"))));
        }
    }
}

#[test]
fn two_hypervisors_side_by_side() {
    for (file, figures) in [
        ("paper/migration-kvm.toml", [FigureId::Fig1, FigureId::Fig2]),
        ("paper/gluster-kvm.toml", [FigureId::Fig6, FigureId::Fig7]),
    ] {
        let scenario = synthetic::scenario(file, None);
        let kvm = synthetic::Machine::new("kvm", "tcg", 2.0).samples(&scenario);
        let xen = synthetic::Machine::new("xen", "tcg", 3.0).samples(&scenario);
        let analysis = analyse(&[("", &kvm), ("", &xen)]);
        for figure in figures {
            draw(&format!("{figure}-two"), &figure.drawing(&analysis, &context(None)));
        }
    }
}

#[test]
fn nothing_to_show_is_still_a_figure() {
    let analysis = analyse(&[]);
    for figure in FigureId::ALL {
        let drawing = figure.drawing(&analysis, &context(None));
        assert!(drawing.caption().iter().any(|line| line == "No samples."), "{:?}", drawing.caption());
        draw(&format!("{figure}-empty"), &drawing);
    }
}

#[test]
fn what_is_too_fast_is_marked_and_not_zero() {
    let scenario = synthetic::scenario("paper/gluster-kvm.toml", Some("quick"));
    let samples = synthetic::Machine::new("kvm", "kvm", 1.0).samples(&scenario);
    let analysis = analyse(&[("", &samples)]);
    let Drawing::Bars(chart) = FigureId::Fig7.drawing(&analysis, &context(Some("quick"))) else {
        panic!("figure 7 has bars");
    };
    let random_read = chart.groups.iter().find(|group| group.label == "Random read").unwrap();
    assert_eq!(random_read.bars, [Bar::TooFast { count: 1 }, Bar::TooFast { count: 1 }]);
    assert!(chart.caption.iter().any(|line| line.starts_with("+++: too fast to measure (2 values)")));
}

#[test]
fn captions() {
    let scenario = synthetic::scenario("paper/gluster-kvm.toml", Some("quick"));
    let mut samples = synthetic::Machine::new("kvm", "tcg", 1.0).samples(&scenario);
    let lost =
        samples.iter_mut().find(|s| s.metric == crate::metric::BONNIE_REWRITE && s.phase == "after").unwrap();
    (lost.valid, lost.reason) = (false, "lost".into());
    let analysis = analyse(&[("", &samples)]);
    let all: Vec<_> = [FigureId::Fig6, FigureId::Fig7]
        .iter()
        .flat_map(|f| f.drawing(&analysis, &context(Some("quick"))).caption().to_vec())
        .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn who_cannot_is_said_and_not_left_out() {
    let scenario = synthetic::scenario("beyond/ffs-peers.toml", Some("quick"));
    let samples = synthetic::Machine::new("none", "none", 1.0).samples(&scenario);
    let analysis = analyse(&[("", &samples)]);
    let context = Context { peers: synthetic::notes(&scenario), ..context(Some("quick")) };
    let drawing = FigureId::Peers.drawing(&analysis, &context);
    draw("peers", &drawing);
    let Drawing::Panels(panels) = drawing else { panic!("the peers have panels") };
    assert_eq!(panels.panels.len(), 14);
    let words = |title: &str, arm: &str| {
        let panel = panels.panels.iter().find(|panel| panel.title.starts_with(title)).unwrap();
        let row = panels.rows.iter().position(|(name, _)| name == arm).unwrap();
        match &panel.marks[row] {
            panels::Mark::Words(words) => words.clone(),
            panels::Mark::Value { .. } => "a value".into(),
        }
    };
    assert_eq!(words("Swap → content seen", "overlayfs"), "cannot");
    assert_eq!(words("Swap → content seen", "ffs"), "a value");
    assert_eq!(words("Memory", "overlayfs"), "no program");
    assert_eq!(words("stat, cold", "mergerfs-passthrough"), "absent");
    assert!(panels.caption.iter().any(|line| line.contains("mergerfs-passthrough is absent")));
}
