//! Bonnie++: its command line, and its results, typed.
//!
//! Bonnie++ 2.00a prints one CSV line of 50 fields with `-q`. It has no usable header (the one of `-x` names 48)
//! and does not quote the machine's name, so fields count by position. `+++++` says that a test
//! took less than half a second, too little to compute a rate: a censored value, never 0.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::exec::{Exec, ExecError, quote};

/// One run of Bonnie++.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Folder in which it works.
    pub directory: String,
    /// Name in the results: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// The throughput test; none leaves it out.
    pub throughput: Option<Throughput>,
    /// The test of file operations, in multiples of 1024 empty files; none leaves it out.
    pub files: Option<u32>,
    /// Seed of the random tests, so that every arm does the same.
    pub seed: u32,
}

/// Sizes of the throughput test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throughput {
    /// Size of the file, in MiB.
    pub file_mib: u32,
    /// Size of one read or write, in KiB; with direct I/O each is a round trip or more.
    pub chunk_kib: u32,
    /// Seeks; Bonnie++'s own 8192 outlast everything else on a slow link.
    pub seeks: u32,
    /// Whether the per-character tests run, and over how many MiB.
    pub per_char_mib: Option<u32>,
}

/// A run that cannot be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// A comma in the name would move every field of the result.
    #[error("\"{0}\" cannot be Bonnie++'s machine name: use letters, digits, '-', '_' and '.'")]
    Name(String),
    /// Neither test is asked for.
    #[error("Bonnie++ has nothing to do: ask for the throughput test or for file operations")]
    Empty,
    /// A size of 0.
    #[error("Bonnie++'s {0} is 0: use at least 1, or leave the test out")]
    Zero(&'static str),
}

impl Run {
    /// The command line; results go to standard output.
    ///
    /// # Errors
    /// [`RunError`], so that nothing is started that Bonnie++ would misread.
    pub fn command(&self) -> Result<String, RunError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || !self.name.chars().all(plain) {
            return Err(RunError::Name(self.name.clone()));
        }
        let mut words = format!("bonnie++ -q -d {} -u root -m {}", quote(&self.directory), self.name);
        match self.throughput {
            None if self.files.is_none() => return Err(RunError::Empty),
            None => words.push_str(" -s 0"),
            Some(sizes) => words.push_str(&sizes.words()?),
        }
        if self.files == Some(0) {
            return Err(RunError::Zero("number of files"));
        }
        // Empty files: as in the paper it is the operation that counts, not its data.
        Ok(format!("{words} -n {} -z {}", self.files.unwrap_or(0), self.seed))
    }
}

/// Bonnie++ computes no rate from less than this, in s (`MinTime` in its source).
const LEAST_TIME: f64 = 0.5;

impl Throughput {
    /// The rate above which a block test is [`Value::TooFast`], in KiB/s: what such a result is at least.
    pub fn too_fast_above(&self) -> f64 {
        f64::from(self.file_mib) * 1024.0 / LEAST_TIME
    }

    fn words(self) -> Result<String, RunError> {
        let Self { file_mib, chunk_kib, seeks, per_char_mib } = self;
        for (value, what) in [(file_mib, "file size"), (chunk_kib, "chunk size"), (seeks, "number of seeks")]
        {
            if value == 0 {
                return Err(RunError::Zero(what));
            }
        }
        // The memory it is told: it refuses a file of less than twice that, and the page cache is
        // kept out by direct I/O, not by the file's size.
        let memory = (file_mib / 2).max(1);
        let per_char = match per_char_mib {
            None => " -f".into(),
            Some(0) => return Err(RunError::Zero("size for per-character tests")),
            // Its value is optional, so it has to be part of the same word.
            Some(mib) => format!(" -f{mib}"),
        };
        Ok(format!(" -s {file_mib}:{chunk_kib}k:{seeks} -r {memory}{per_char}"))
    }
}

/// A result of one test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Value {
    /// A rate.
    Measured(f64),
    /// It took less than half a second: censored, larger than can be said.
    TooFast,
}

impl Value {
    /// The rate; none when it was too fast.
    pub fn measured(self) -> Option<f64> {
        match self {
            Self::Measured(value) => Some(value),
            Self::TooFast => None,
        }
    }
}

/// One test: its rate, the processor it took, and the longest single operation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// Rate: KiB/s, seeks/s or files/s.
    pub rate: Value,
    /// Processor time, in percent; none when it could not be computed.
    pub cpu: Option<f64>,
    /// Longest single operation.
    pub latency: Option<Duration>,
}

/// Results of one run; none where a test did not run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Bonnie {
    /// Machine name as given.
    pub name: String,
    /// Version of the program, e.g. `2.00a`.
    pub version: String,
    /// Writing byte by byte, KiB/s.
    pub putc: Option<Test>,
    /// Writing by chunk, KiB/s.
    pub block_write: Option<Test>,
    /// Reading, changing and writing back by chunk, KiB/s.
    pub rewrite: Option<Test>,
    /// Reading byte by byte, KiB/s.
    pub getc: Option<Test>,
    /// Reading by chunk, KiB/s.
    pub block_read: Option<Test>,
    /// Random seeks, 1/s.
    pub seeks: Option<Test>,
    /// Creating files in order, files/s.
    pub seq_create: Option<Test>,
    /// Their stat, in the directory's order.
    pub seq_stat: Option<Test>,
    /// Deleting them.
    pub seq_delete: Option<Test>,
    /// Creating files in random order, files/s.
    pub ran_create: Option<Test>,
    /// Their stat, in random order.
    pub ran_stat: Option<Test>,
    /// Deleting them.
    pub ran_delete: Option<Test>,
    /// The line as printed, for the run's folder.
    pub raw: String,
}

/// A value under the name that samples and figures use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// Name of the metric, e.g. `bonnie_block_write`.
    pub metric: &'static str,
    /// The rate.
    pub value: Value,
    /// `KiB/s`, `1/s` or `files/s`.
    pub unit: &'static str,
}

/// Output of Bonnie++ that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BonnieError {
    /// The run cannot be started.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The command failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// There is no line of results.
    #[error("Bonnie++ printed no results (no line that begins with \"1.98,\"): {0}")]
    Missing(String),
    /// A line has another number of fields.
    #[error("Bonnie++'s results have {0} fields, not 50: is this version 2.00a?")]
    Fields(usize),
    /// A field is no value.
    #[error("field {field} of Bonnie++'s results, {what}, is \"{text}\"")]
    Field {
        /// Position, from 0.
        field: usize,
        /// What should be there.
        what: &'static str,
        /// What is there.
        text: String,
    },
}

/// Version of the CSV format that this reads: what 2.00a prints.
const FORMAT: &str = "1.98";
/// Fields in a line of it.
const FIELDS: usize = 50;

impl Bonnie {
    /// Reads what `bonnie++ -q` printed; the first line of results counts.
    ///
    /// # Errors
    /// [`BonnieError`] with the field that cannot be read.
    pub fn parse(text: &str) -> Result<Self, BonnieError> {
        let results = |line: &&str| line.split(',').next() == Some(FORMAT);
        let line = text
            .lines()
            .find(results)
            .ok_or_else(|| BonnieError::Missing(crate::exec::last_lines(text, 3)))?;
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(line.as_bytes());
        let Some(Ok(record)) = reader.records().next() else {
            return Err(BonnieError::Missing(line.to_owned()));
        };
        let fields: Vec<&str> = record.iter().collect();
        if fields.len() != FIELDS {
            return Err(BonnieError::Fields(fields.len()));
        }
        let read = |what, rate, latency| read_test(&fields, what, rate, latency);
        Ok(Self {
            version: fields[1].into(),
            name: fields[2].into(),
            putc: read("putc", 9, 38)?,
            block_write: read("block write", 11, 39)?,
            rewrite: read("rewrite", 13, 40)?,
            getc: read("getc", 15, 41)?,
            block_read: read("block read", 17, 42)?,
            seeks: read("seeks", 19, 43)?,
            seq_create: read("sequential create", 26, 44)?,
            seq_stat: read("sequential stat", 28, 45)?,
            seq_delete: read("sequential delete", 30, 46)?,
            ran_create: read("random create", 32, 47)?,
            ran_stat: read("random stat", 34, 48)?,
            ran_delete: read("random delete", 36, 49)?,
            raw: line.to_owned(),
        })
    }

    /// The tests that ran, under the names and units of samples, in Bonnie++'s order.
    pub fn rows(&self) -> Vec<Row> {
        const KIB: &str = "KiB/s";
        const FILES: &str = "files/s";
        let all = [
            ("bonnie_putc", self.putc, KIB),
            ("bonnie_block_write", self.block_write, KIB),
            ("bonnie_rewrite", self.rewrite, KIB),
            ("bonnie_getc", self.getc, KIB),
            ("bonnie_block_read", self.block_read, KIB),
            ("bonnie_seeks", self.seeks, "1/s"),
            ("bonnie_seq_create", self.seq_create, FILES),
            ("bonnie_seq_stat", self.seq_stat, FILES),
            ("bonnie_seq_delete", self.seq_delete, FILES),
            ("bonnie_ran_create", self.ran_create, FILES),
            ("bonnie_ran_stat", self.ran_stat, FILES),
            ("bonnie_ran_delete", self.ran_delete, FILES),
        ];
        let ran = |(metric, test, unit): (_, Option<Test>, _)| Some(Row { metric, value: test?.rate, unit });
        all.into_iter().filter_map(ran).collect()
    }
}

fn read_test(
    fields: &[&str],
    what: &'static str,
    at: usize,
    latency_at: usize,
) -> Result<Option<Test>, BonnieError> {
    let wrong = |field: usize| BonnieError::Field { field, what, text: fields[field].into() };
    let rate = match fields[at] {
        "" => return Ok(None),
        text if censored(text) => Value::TooFast,
        text => Value::Measured(number(text).ok_or_else(|| wrong(at))?),
    };
    let cpu = match fields[at + 1] {
        text if text.is_empty() || censored(text) => None,
        text => Some(number(text).ok_or_else(|| wrong(at + 1))?),
    };
    let latency = match fields[latency_at] {
        text if text.is_empty() || censored(text) => None,
        text => Some(read_latency(text).ok_or_else(|| wrong(latency_at))?),
    };
    Ok(Some(Test { rate, cpu, latency }))
}

fn censored(text: &str) -> bool {
    text.len() >= 3 && text.bytes().all(|b| b == b'+')
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0)
}

/// `8008us`, `394ms`, `12s`.
fn read_latency(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let value: u64 = digits.parse().ok()?;
    match &text[digits.len()..] {
        "us" => Some(Duration::from_micros(value)),
        "ms" => Some(Duration::from_millis(value)),
        "s" => Some(Duration::from_secs(value)),
        _ => None,
    }
}

/// Runs Bonnie++ on `guest`, at most for `deadline`; its folder must be on the file system that is to be measured
/// (`mount`), or nothing is started.
///
/// # Errors
/// [`BonnieError`].
pub async fn run(
    guest: &impl Exec,
    run: &Run,
    mount: &str,
    deadline: Duration,
) -> Result<Bonnie, BonnieError> {
    let command = run.command()?;
    // `timeout` in the guest, since a lost connection does not end what runs there; what an
    // earlier run left behind would be counted by this one's readdir.
    let script = format!(
        "mountpoint -q {mount} || {{ echo {mount} is not mounted >&2; exit 1; }}
mkdir -p {directory} && rm -rf {directory}/Bonnie.* || exit 1
timeout -k 10 {seconds} {command}
",
        mount = quote(mount),
        directory = quote(&run.directory),
        seconds = deadline.as_secs().max(1),
    );
    let printed = guest.demand("run Bonnie++", &script, deadline + Duration::from_secs(30)).await?;
    Bonnie::parse(&printed)
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;
    use crate::{doctor, program};

    /// Through a remote server under emulation, dilation 5: direct I/O, `-f`, no file operations.
    const REMOTE: &str = "1.98,2.00a,m1,1,1795353489,8M,,100,5,,,576,0,313,0,,,385,0,8.7,1,,,,,,,,,,,,,,,,,,,224ms,394ms,,173ms,883ms,,,,,,";
    /// The same without shaping: block writes too fast.
    const UNSHAPED: &str = "1.98,2.00a,remote,1,1795352685,8M,,100,5,,,+++++,+++,9412,5,,,+++++,+++,+++++,+++,,,,,,,,,,,,,,,,,,,29160us,16336us,,3628us,30533us,,,,,,";
    /// File operations only, through the remote server at dilation 1.
    const FILES: &str = "1.98,2.00a,m1,1,1795353070,,,,,,,,,,,,,,,,,1,,,,,10,2,799,3,20,1,7,2,31,2,14,2,,,,,,,1833ms,38738us,100ms,1891ms,379ms,355ms";
    /// All tests, on a local disk.
    const LOCAL_DISK: &str = "1.98,2.00a,m1,1,1795349403,4M,,8192,5,1682,87,+++++,+++,+++++,+++,2913,94,+++++,+++,+++++,+++,,,,,,,,,,,,,,,,,,18054us,25us,25us,7758us,28us,8858us,,,,,,";

    fn example() -> Run {
        Run {
            directory: "/mnt/gluster/b".into(),
            name: "remote".into(),
            throughput: Some(Throughput { file_mib: 4, chunk_kib: 64, seeks: 30, per_char_mib: None }),
            files: None,
            seed: 7,
        }
    }

    #[test]
    fn command_lines() {
        let run = example();
        assert!((run.throughput.unwrap().too_fast_above() - 8192.0).abs() < 1e-9);
        let common = "bonnie++ -q -d /mnt/gluster/b -u root -m remote";
        assert_eq!(run.command().unwrap(), format!("{common} -s 4:64k:30 -r 2 -f -n 0 -z 7"));
        let files = Run { throughput: None, files: Some(1), ..run.clone() };
        assert_eq!(files.command().unwrap(), format!("{common} -s 0 -n 1 -z 7"));
        let sizes = Throughput { per_char_mib: Some(1), ..run.throughput.unwrap() };
        let both = Run { throughput: Some(sizes), files: Some(2), ..run };
        assert_eq!(both.command().unwrap(), format!("{common} -s 4:64k:30 -r 2 -f1 -n 2 -z 7"));
    }

    /// All that a scenario can ask for, on this machine.
    #[test]
    #[allow(clippy::print_stderr)]
    fn bonnie_itself_takes_the_commands_and_does_what_they_say() {
        if !nix::unistd::Uid::effective().is_root() || doctor::which("bonnie++").is_none() {
            eprintln!(
                "SKIPPED workload::bonnie::bonnie_itself_takes_the_commands_and_does_what_they_say: needs root and bonnie++"
            );
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().to_str().unwrap().to_owned();
        let sizes = |per_char_mib| Throughput { file_mib: 2, chunk_kib: 64, seeks: 1, per_char_mib };
        for (throughput, files) in [
            (Some(sizes(None)), None),
            (Some(sizes(Some(1))), None),
            (None, Some(1)),
            (Some(sizes(Some(2))), Some(1)),
        ] {
            let run = Run { directory: directory.clone(), throughput, files, ..example() };
            let command = run.command().unwrap();
            let mut shell = std::process::Command::new("sh");
            let output =
                program::output(shell.args(["-c", &command]).stdin(Stdio::null()), Duration::from_secs(120))
                    .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{command}: {output:?}");
            let found = Bonnie::parse(&said).unwrap_or_else(|error| panic!("{command}: {error}: {said}"));
            let blocks = throughput.is_some();
            let per_char = throughput.is_some_and(|sizes| sizes.per_char_mib.is_some());
            assert_eq!(
                (found.putc.is_some(), found.getc.is_some()),
                (per_char, per_char),
                "{command}: {said}"
            );
            assert_eq!(
                found.block_write.is_some() && found.block_read.is_some(),
                blocks,
                "{command}: {said}"
            );
            assert_eq!(
                found.seq_create.is_some() && found.ran_delete.is_some(),
                files.is_some(),
                "{command}: {said}"
            );
        }
    }

    #[test]
    fn what_bonnie_would_misread_is_refused() {
        let run = example();
        assert!(matches!(Run { name: "a,b".into(), ..run.clone() }.command(), Err(RunError::Name(_))));
        assert_eq!(Run { throughput: None, ..run.clone() }.command(), Err(RunError::Empty));
        assert_eq!(Run { files: Some(0), ..run.clone() }.command(), Err(RunError::Zero("number of files")));
        let sizes = Throughput { seeks: 0, ..run.throughput.unwrap() };
        assert!(Run { throughput: Some(sizes), ..run }.command().is_err());
    }

    #[test]
    fn throughput_through_a_remote_server() {
        let bonnie = Bonnie::parse(REMOTE).unwrap();
        let write = bonnie.block_write.unwrap();
        assert_eq!(write.rate, Value::Measured(576.0));
        assert_eq!(write.latency, Some(Duration::from_millis(224)));
        assert_eq!(bonnie.seeks.unwrap().rate.measured(), Some(8.7));
        assert_eq!((bonnie.putc, bonnie.seq_create), (None, None));
        let rows: Vec<_> = bonnie.rows().iter().map(|row| (row.metric, row.unit)).collect();
        assert_eq!(
            rows,
            [
                ("bonnie_block_write", "KiB/s"),
                ("bonnie_rewrite", "KiB/s"),
                ("bonnie_block_read", "KiB/s"),
                ("bonnie_seeks", "1/s")
            ]
        );
    }

    #[test]
    fn too_fast_is_neither_zero_nor_absent() {
        let bonnie = Bonnie::parse(UNSHAPED).unwrap();
        let write = bonnie.block_write.unwrap();
        assert_eq!((write.rate, write.cpu), (Value::TooFast, None));
        assert_eq!(write.rate.measured(), None);
        assert_eq!(write.latency, Some(Duration::from_micros(29_160)));
        assert_eq!(bonnie.rows().len(), 4);
    }

    #[test]
    fn file_operations_and_per_character_tests() {
        let rows = Bonnie::parse(FILES).unwrap().rows();
        let values: Vec<_> = rows.iter().map(|row| (row.metric, row.value.measured().unwrap())).collect();
        assert_eq!(
            values,
            [
                ("bonnie_seq_create", 10.0),
                ("bonnie_seq_stat", 799.0),
                ("bonnie_seq_delete", 20.0),
                ("bonnie_ran_create", 7.0),
                ("bonnie_ran_stat", 31.0),
                ("bonnie_ran_delete", 14.0)
            ]
        );
        let bonnie = Bonnie::parse(LOCAL_DISK).unwrap();
        assert_eq!(bonnie.getc.unwrap().cpu, Some(94.0));
    }

    #[test]
    fn noise_around_the_results_is_skipped_and_damage_is_not() {
        let text = format!("# a comment\nformat_version,bonnie_version\n{REMOTE}\n");
        assert_eq!(Bonnie::parse(&text).unwrap().raw, REMOTE);
        assert!(matches!(Bonnie::parse("usage:\nbonnie++ [-d …]\n"), Err(BonnieError::Missing(_))));
        assert!(matches!(Bonnie::parse(&REMOTE.replace("m1", "m1,a")), Err(BonnieError::Fields(51))));
        let error = Bonnie::parse(&REMOTE.replace(",576,", ",-5,")).unwrap_err().to_string();
        assert_eq!(error, "field 11 of Bonnie++'s results, block write, is \"-5\"");
        assert!(Bonnie::parse(&REMOTE.replace("394ms", "394m")).is_err());
    }

    #[test]
    fn bonnie_itself_on_this_machine() {
        let Ok(probe) = std::process::Command::new("bonnie++").arg("-h").output() else {
            eprintln!("SKIPPED bonnie_itself_on_this_machine: no bonnie++");
            return;
        };
        drop(probe);
        let folder = tempfile::tempdir().unwrap();
        let run = Run { directory: folder.path().to_str().unwrap().into(), files: Some(1), ..example() };
        let output = std::process::Command::new("sh").args(["-c", &run.command().unwrap()]).output().unwrap();
        let bonnie = Bonnie::parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
        assert_eq!((bonnie.name.as_str(), bonnie.rows().len()), ("remote", 10));
    }
}
