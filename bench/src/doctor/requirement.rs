//! What a run needs, as a small algebra: evaluated once, before anything starts, and told whole.
//!
//! A person who lacks three things shall hear of three things, not of one after the other.

use std::fmt;
use std::path::{Path, PathBuf};

use super::{Accelerator, Answer, Report, Status, Subject};
use crate::scenario::Hypervisor;

/// Something that a run needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// All of these.
    All(Vec<Requirement>),
    /// One of these.
    Any(Vec<Requirement>),
    /// A program on the path.
    Program {
        /// Its name.
        name: String,
        /// The Debian package that has it.
        package: String,
    },
    /// What a probe looked at works, at least in its degraded form.
    Works(Subject),
    /// Hosts with this hypervisor can run with this accelerator, as far as that is known.
    Accelerator {
        /// The accelerator.
        accelerator: Accelerator,
        /// What runs guests on the hosts.
        hypervisor: Hypervisor,
    },
    /// So many bytes of memory are free.
    Memory(u64),
    /// So many processors may be used.
    Processors(usize),
    /// So many bytes are free where this path is or will be.
    Disk {
        /// The path; it need not exist yet.
        path: PathBuf,
        /// Bytes.
        bytes: u64,
    },
    /// This folder, or the folder where it will be made, can be written.
    Writable(PathBuf),
}

impl Requirement {
    /// A program and the Debian package that has it.
    pub fn program(name: &str, package: &str) -> Self {
        Self::Program { name: name.to_owned(), package: package.to_owned() }
    }
}

/// What requirements are evaluated against.
pub trait Machine {
    /// Whether what a probe looked at works.
    ///
    /// # Errors
    /// What is wrong, and what to do about it.
    fn works(&self, subject: Subject) -> Result<(), (String, String)>;
    /// What hosts with a hypervisor run with when nobody chooses, and why.
    fn auto(&self, hypervisor: Hypervisor) -> Answer;
    /// Whether a program is on the path.
    fn has_program(&self, name: &str) -> bool;
    /// Bytes of free memory.
    fn memory(&self) -> u64;
    /// Processors that may be used.
    fn processors(&self) -> usize;
    /// Bytes that are free where a path is or will be; nothing when that cannot be told.
    fn free(&self, path: &Path) -> Option<u64>;
    /// Whether a folder can be written, or made.
    fn writable(&self, path: &Path) -> bool;
}

impl Machine for Report {
    fn works(&self, subject: Subject) -> Result<(), (String, String)> {
        match self.finding(subject) {
            Some(finding) if finding.status == Status::Missing => {
                Err((format!("{}: {}", subject.label(), finding.evidence), finding.remedy.clone()))
            }
            _ => Ok(()),
        }
    }

    fn auto(&self, hypervisor: Hypervisor) -> Answer {
        Self::auto(self, hypervisor)
    }

    fn has_program(&self, name: &str) -> bool {
        super::which(name).is_some()
    }

    fn memory(&self) -> u64 {
        self.facts.memory_available
    }

    fn processors(&self) -> usize {
        self.facts.processors
    }

    fn free(&self, path: &Path) -> Option<u64> {
        super::probes::free(path)
    }

    fn writable(&self, path: &Path) -> bool {
        existing(path)
            .is_some_and(|folder| nix::unistd::access(folder, nix::unistd::AccessFlags::W_OK).is_ok())
    }
}

/// The path itself or the nearest folder above it that is there.
pub(super) fn existing(path: &Path) -> Option<&Path> {
    path.ancestors()
        .map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path })
        .find(|path| path.exists())
}

/// What is not met: a sentence for each, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Unmet {
    /// What is lacking, and what to do about it; never empty.
    pub lacks: Vec<Lack>,
}

/// One thing that is lacking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.remedy.is_empty() {
            f.write_str(&self.what)
        } else {
            write!(f, "{}: {}", self.what, self.remedy)
        }
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.lacks.iter().map(ToString::to_string).collect();
        match lines.as_slice() {
            [one] => write!(f, "this machine cannot do it. {one}"),
            more => write!(f, "this machine cannot do it:\n  - {}", more.join("\n  - ")),
        }
    }
}

/// Evaluates all requirements.
///
/// # Errors
/// [`Unmet`], with everything that is lacking.
pub fn require(machine: &impl Machine, requirements: &[Requirement]) -> Result<(), Unmet> {
    let mut lacks: Vec<Lack> = Vec::new();
    for lack in requirements.iter().flat_map(|requirement| lacking(machine, requirement)) {
        if !lacks.contains(&lack) {
            lacks.push(lack);
        }
    }
    if lacks.is_empty() { Ok(()) } else { Err(Unmet { lacks }) }
}

/// What is lacking of one requirement; nothing when it is met.
fn lacking(machine: &impl Machine, requirement: &Requirement) -> Vec<Lack> {
    let lack = |met: bool, what: &dyn Fn() -> String, remedy: &str| {
        if met { Vec::new() } else { vec![Lack { what: what(), remedy: remedy.to_owned() }] }
    };
    match requirement {
        Requirement::All(all) => all.iter().flat_map(|one| lacking(machine, one)).collect(),
        Requirement::Any(any) => {
            let each: Vec<Vec<Lack>> = any.iter().map(|one| lacking(machine, one)).collect();
            if each.iter().any(Vec::is_empty) {
                return Vec::new();
            }
            let sentences: Vec<String> = each.iter().flatten().map(|lack| format!("({lack})")).collect();
            vec![Lack {
                what: format!("one of these is needed: {}", sentences.join(" or ")),
                remedy: String::new(),
            }]
        }
        Requirement::Program { name, package } => lack(
            machine.has_program(name),
            &|| format!("the program `{name}` is missing"),
            &format!("run ci/setup, or install the Debian package {package}"),
        ),
        Requirement::Works(subject) => match machine.works(*subject) {
            Ok(()) => Vec::new(),
            Err((what, remedy)) => vec![Lack { what, remedy }],
        },
        // What emulates is QEMU itself, which has a probe of its own.
        Requirement::Accelerator { accelerator: Accelerator::Tcg, .. } => Vec::new(),
        Requirement::Accelerator { accelerator: Accelerator::Kvm, hypervisor } => {
            let auto = machine.auto(*hypervisor);
            if auto.known && auto.accelerator != Accelerator::Kvm {
                vec![no_hardware(*hypervisor, &auto.why)]
            } else {
                Vec::new()
            }
        }
        Requirement::Memory(bytes) => lack(
            machine.memory() >= *bytes,
            &|| format!("{} of memory are needed and {} are free", size(*bytes), size(machine.memory())),
            "end other programs, or use a smaller scenario",
        ),
        Requirement::Processors(count) => lack(
            machine.processors() >= *count,
            &|| format!("{count} processors are needed and {} may be used", machine.processors()),
            "use a larger machine",
        ),
        Requirement::Disk { path, bytes } => match machine.free(path) {
            Some(free) => lack(
                free >= *bytes,
                &|| {
                    format!(
                        "{} are needed on the disk of {} and {} are free",
                        size(*bytes),
                        path.display(),
                        size(free)
                    )
                },
                "make room (`bench image prune` frees old images), or choose another folder",
            ),
            None => lack(
                false,
                &|| format!("the disk of {} cannot be looked at", path.display()),
                "choose another folder",
            ),
        },
        Requirement::Writable(path) => lack(
            machine.writable(path),
            &|| format!("{} cannot be written", path.display()),
            "change its permissions, or choose another folder",
        ),
    }
}

/// Hosts with a hypervisor cannot have hardware virtualization.
pub(super) fn no_hardware(hypervisor: Hypervisor, why: &str) -> Lack {
    Lack {
        what: format!("hosts with {hypervisor} cannot run with the accelerator kvm ({why})"),
        remedy:
            "choose the accelerator auto or tcg, or see what `bench doctor` says of hardware virtualization"
                .into(),
    }
}

/// Bytes for a person.
pub(super) fn size(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes >= 1024.0 { format!("{:.1} GiB", mebibytes / 1024.0) } else { format!("{mebibytes:.0} MiB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine as a table.
    struct Table {
        programs: &'static [&'static str],
        memory: u64,
    }

    impl Machine for Table {
        fn works(&self, subject: Subject) -> Result<(), (String, String)> {
            if subject == Subject::Fuse {
                Err(("FUSE: no /dev/fuse".into(), "modprobe fuse".into()))
            } else {
                Ok(())
            }
        }
        fn auto(&self, hypervisor: Hypervisor) -> Answer {
            let known = hypervisor == Hypervisor::Kvm;
            Answer { accelerator: Accelerator::Tcg, known, why: "the kernel hangs".into() }
        }
        fn has_program(&self, name: &str) -> bool {
            self.programs.contains(&name)
        }
        fn memory(&self) -> u64 {
            self.memory
        }
        fn processors(&self) -> usize {
            2
        }
        fn free(&self, path: &Path) -> Option<u64> {
            path.is_absolute().then_some(1 << 30)
        }
        fn writable(&self, path: &Path) -> bool {
            path.starts_with("/tmp")
        }
    }

    const TABLE: Table = Table { programs: &["ssh"], memory: 4 << 30 };

    #[test]
    fn everything_that_is_lacking_is_told_once() {
        let needs = [
            Requirement::All(vec![
                Requirement::program("ssh", "openssh-client"),
                Requirement::program("mke2fs", "e2fsprogs"),
                Requirement::Memory(8 << 30),
            ]),
            Requirement::program("mke2fs", "e2fsprogs"),
            Requirement::Works(Subject::Fuse),
            Requirement::Works(Subject::Qemu),
            Requirement::Accelerator { accelerator: Accelerator::Kvm, hypervisor: Hypervisor::Kvm },
            Requirement::Accelerator { accelerator: Accelerator::Tcg, hypervisor: Hypervisor::Kvm },
            // It is not known yet, and tried when it can be.
            Requirement::Accelerator { accelerator: Accelerator::Kvm, hypervisor: Hypervisor::Xen },
            Requirement::Processors(4),
            Requirement::Disk { path: "/var".into(), bytes: 2 << 30 },
            Requirement::Writable("/usr".into()),
        ];
        insta::assert_snapshot!(require(&TABLE, &needs).unwrap_err(), @r"
        this machine cannot do it:
          - the program `mke2fs` is missing: run ci/setup, or install the Debian package e2fsprogs
          - 8.0 GiB of memory are needed and 4.0 GiB are free: end other programs, or use a smaller scenario
          - FUSE: no /dev/fuse: modprobe fuse
          - hosts with kvm cannot run with the accelerator kvm (the kernel hangs): choose the accelerator auto or tcg, or see what `bench doctor` says of hardware virtualization
          - 4 processors are needed and 2 may be used: use a larger machine
          - 2.0 GiB are needed on the disk of /var and 1.0 GiB are free: make room (`bench image prune` frees old images), or choose another folder
          - /usr cannot be written: change its permissions, or choose another folder
        ");
    }

    #[test]
    fn one_of_several_is_enough_and_none_is_one_sentence() {
        let either = |a: &str, b: &str| {
            Requirement::Any(vec![Requirement::program(a, "a"), Requirement::program(b, "b")])
        };
        assert_eq!(require(&TABLE, &[either("ssh", "rsh")]), Ok(()));
        assert_eq!(require(&TABLE, &[either("telnet", "rsh")]).unwrap_err().lacks.len(), 1);
    }

    #[test]
    fn nothing_is_met_by_everybody_and_a_choice_of_nothing_by_nobody() {
        assert_eq!(require(&TABLE, &[]), Ok(()));
        assert_eq!(require(&TABLE, &[Requirement::All(Vec::new())]), Ok(()));
        assert!(require(&TABLE, &[Requirement::Any(Vec::new())]).is_err());
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_judged_by_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(existing(&folder.path().join("a/b/c")), Some(folder.path()));
        assert_eq!(existing(Path::new("not/there/yet")), Some(Path::new(".")));
    }
}
