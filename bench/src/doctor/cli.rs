//! `bench doctor`.

use std::process::ExitCode;

use clap::Args;
use ctx_io::{outln, output};

use super::{Options, Report, Status, probe_with};
use crate::scenario::Hypervisor;

/// What can be asked of the doctor.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
    /// Boot guests again even when the answer is known from earlier
    #[arg(long)]
    pub afresh: bool,
}

/// Probes, prints, and says by the exit code whether scenarios can be run here: 0 or 1.
pub fn run(arguments: &Arguments) -> ExitCode {
    let report = probe_with(&Options { afresh: arguments.afresh, cache: None });
    if arguments.json {
        outln!("{}", json(&report));
    } else {
        output::text(&text(&report));
    }
    let possible = report.findings.iter().all(|finding| finding.status != Status::Missing);
    if possible { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The report and what follows from it as one JSON object.
pub fn json(report: &Report) -> String {
    let auto = |hypervisor| report.auto(hypervisor);
    let (kvm, xen) = (auto(Hypervisor::Kvm), auto(Hypervisor::Xen));
    let whole = serde_json::json!({
        // Nothing is said of it before a kernel was booted.
        "accelerator": kvm.known.then_some(kvm.accelerator),
        "auto": { "kvm": kvm, "xen": xen },
        "possible": report.possibilities(),
        "findings": report.findings,
        "facts": report.facts,
        "virtualization": report.virtualization,
    });
    format!("{whole:#}")
}

/// The report for a person.
pub fn text(report: &Report) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    // Writing to a string cannot fail.
    for finding in &report.findings {
        let status = match finding.status {
            Status::Ok => "ok",
            Status::Unknown => "unknown",
            Status::Degraded => "degraded",
            Status::Missing => "MISSING",
        };
        let _ = writeln!(text, "{status:<9} {:<24} {}", finding.subject.label(), finding.evidence);
        for (mark, line) in [("so", &finding.follows), ("do", &finding.remedy)] {
            if !line.is_empty() {
                let _ = writeln!(text, "{:<34} {mark}: {line}", "");
            }
        }
    }
    text.push('\n');
    for possibility in report.possibilities() {
        let answer = if possibility.possible { "yes" } else { "no" };
        let _ = writeln!(text, "{answer:<4} {}: {}", possibility.what, possibility.how);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{Boot, Facts, Finding, Subject, Virtualization};
    use super::*;

    fn sample() -> Report {
        let up =
            Boot::Up { payload: "a boot sector up to long mode".into(), took_ms: 120, nested: Some(true) };
        let finding = |subject, status, evidence: &str, follows: &str, remedy: &str| Finding {
            subject,
            status,
            evidence: evidence.into(),
            follows: follows.into(),
            remedy: remedy.into(),
        };
        Report {
            findings: vec![
                finding(Subject::Qemu, Status::Ok, "QEMU 10.0.2", "", ""),
                finding(
                    Subject::HardwareVirtualization,
                    Status::Degraded,
                    "hangs",
                    "hosts are emulated",
                    "another one",
                ),
                finding(Subject::Ssh, Status::Missing, "no ssh", "no hosts", "install it"),
            ],
            facts: Facts {
                processor: "A Fast One".into(),
                processors: 2,
                memory_available: 1 << 33,
                memory_total: 1 << 34,
                cache: "/cache".into(),
                cache_free: 1 << 40,
                qemu: "10.0.2".into(),
                kernel: "6.12".into(),
                root: false,
            },
            virtualization: Virtualization {
                hardware: Boot::Hangs { payload: "x".into(), limit_ms: 5000 },
                kernel: Boot::Untried { reason: "the boot sector did not come up".into() },
                xen: Boot::Untried { reason: "no kernel came up".into() },
                emulated: up,
            },
        }
    }

    #[test]
    fn a_person_reads_what_was_seen_what_follows_and_what_to_do() {
        insta::assert_snapshot!(text(&sample()));
    }

    #[test]
    fn json_names_the_accelerator_and_reads_back() {
        let value: serde_json::Value = serde_json::from_str(&json(&sample())).unwrap();
        assert_eq!(value["accelerator"], "tcg");
        assert_eq!(value["auto"]["xen"]["why"], "x had not come up after 5 s");
        assert_eq!(value["findings"][1]["status"], "degraded");
        assert_eq!(value["possible"][0]["possible"], false);
    }
}
