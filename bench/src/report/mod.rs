//! The report of a run: `samples.csv`, figures and `report.html`, from the stored files alone.
//!
//! Nothing here measures, asks the machine or reads a clock, so the same run gives the same bytes
//! whenever and wherever it is reported. Several runs (of KVM and of Xen, say) give one report with
//! their groups side by side; samples of different machines are never put together.

mod claims;
mod network;
mod peers;
mod view;

use std::{
    fs,
    path::{Path, PathBuf},
};

use minijinja::{AutoEscape, Environment, UndefinedBehavior, syntax::SyntaxConfig, value::Serde};

use crate::{
    derive::{
        self,
        evaluate::{self, EvaluateError},
    },
    figures::{self, Context, Drawing, FigureError, FigureId, timeline::timeline},
    metric,
    model::Metric,
    observe::trace::Trace,
    scenario::Experiment,
    stats::{Analysis, analyse},
    store::{self, StoreError, StoredRun, Torn},
};

static TEMPLATE: &str = include_str!("../../templates/report.html");

/// A report could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A run cannot be read, or a file cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A figure cannot be drawn.
    #[error(transparent)]
    Figure(#[from] FigureError),
    /// The template is wrong.
    #[error("the report's template cannot be filled in: {0:#}; this is a mistake in the bench, report it")]
    Template(#[from] minijinja::Error),
    /// A metric that was defined cannot be computed.
    #[error(transparent)]
    Metric(#[from] EvaluateError),
    /// No run was given.
    #[error("no run to report; give the folder of one, e.g. results/<scenario>/<run>")]
    Nothing,
    /// Several runs, and no folder for what they give together.
    #[error(
        "a report of several runs, or with metrics of your own, needs a folder that is none of the runs'; give one with --out"
    )]
    NoFolder,
    /// Runs that have nothing in common.
    #[error("{first} and {other} are different experiments; report them apart")]
    Experiments {
        /// Name of the first run.
        first: String,
        /// Name of a run that does not fit.
        other: String,
    },
}

/// What was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The page.
    pub html: PathBuf,
    /// The result in a sentence or two.
    pub summary: Vec<String>,
    /// Samples that statistics could not use.
    pub invalid: usize,
    /// Files of the runs that are not as their checksums say.
    pub changed: Vec<String>,
    /// Values that do not follow from what the run has seen, as this bench derives them.
    pub otherwise: Vec<String>,
    /// Last lines of logs that were left out, since the run was cut off in the middle of them.
    pub torn: Vec<Torn>,
}

/// Makes the report of one run in its own folder, or of several in `folder`.
///
/// # Errors
/// A run cannot be read, a file cannot be written, or the runs do not fit together.
pub fn report(runs: &[&Path], folder: Option<&Path>) -> Result<Report, ReportError> {
    report_with(runs, folder, &[])
}

/// The same with metrics that a user defined, computed from what the runs have seen. It is put beside the runs, never into
/// one; `samples.csv` stands there too when it is of one run.
///
/// # Errors
/// As [`report`], and when a metric cannot be computed.
pub fn report_with(
    runs: &[&Path],
    folder: Option<&Path>,
    definitions: &[Metric],
) -> Result<Report, ReportError> {
    let mut stored = runs.iter().map(|path| StoredRun::read(path)).collect::<Result<Vec<_>, _>>()?;
    for run in &mut stored {
        run.samples.extend(evaluate::samples(run, definitions)?);
    }
    let first = stored.first().ok_or(ReportError::Nothing)?;
    let experiment = first.scenario.experiment;
    if let Some(other) = stored.iter().find(|run| run.scenario.experiment != experiment) {
        return Err(ReportError::Experiments {
            first: first.manifest.run.clone(),
            other: other.manifest.run.clone(),
        });
    }
    let own = definitions.is_empty() && stored.len() == 1 && folder.is_none_or(|folder| folder == first.path);
    let folder = match folder {
        None if own => first.path.as_path(),
        Some(folder) if own || stored.iter().all(|run| run.path != folder) => folder,
        _ => return Err(ReportError::NoFolder),
    };
    // Before anything is written: what is derived again is the same, or its line is renewed below.
    let changed = changed(&stored)?;
    let otherwise = otherwise(&stored);

    let labels = labels(&stored);
    let labelled: Vec<_> =
        labels.iter().map(String::as_str).zip(stored.iter().map(|run| run.samples.as_slice())).collect();
    let analysis = analyse(&labelled);
    let context = context(&stored);
    let mut derived = Vec::new();
    let figures = folder.join(store::FIGURES);
    fs::create_dir_all(&figures).map_err(|source| StoreError::Io {
        doing: "make the folder",
        path: figures.clone(),
        source,
    })?;
    if own || stored.len() == 1 {
        store::write_samples(folder, &first.samples)?;
        derived.push(store::SAMPLES.to_owned());
    }
    let pictures = pictures(&stored, &analysis, &context)?;
    for picture in &pictures {
        for (extension, bytes) in [("svg", picture.svg.as_bytes()), ("png", &picture.png)] {
            let name = format!("{}.{extension}", picture.id);
            store::write_whole(&figures.join(&name), bytes)?;
            derived.push(format!("{}/{name}", store::FIGURES));
        }
    }
    let summary = claims::summary(experiment, &stored, &analysis);
    let html =
        render(&view::View::new(&stored, &analysis, &summary, &changed, &otherwise, &pictures, definitions))?;
    let path = folder.join(store::REPORT);
    store::write_whole(&path, html.as_bytes())?;
    derived.push(store::REPORT.to_owned());
    if own {
        store::refresh(folder, &derived)?;
    }
    let torn = stored.iter().filter_map(|run| run.torn.clone()).collect();
    Ok(Report { html: path, summary, invalid: analysis.unused.len(), changed, otherwise, torn })
}

/// A figure in both formats.
struct Picture {
    id: String,
    title: String,
    svg: String,
    png: Vec<u8>,
}

/// Files that were measured and are not as they were then. Derived ones are not meant: they are made
/// anew.
fn changed(runs: &[StoredRun]) -> Result<Vec<String>, StoreError> {
    let mut all = Vec::new();
    for run in runs {
        for mismatch in store::verify(&run.path)? {
            let path = mismatch.path();
            let derived = path == store::SAMPLES
                || path == store::REPORT
                || path.strip_prefix(store::FIGURES).is_some_and(|rest| rest.starts_with('/'));
            if !derived {
                all.push(format!("{}: {mismatch}", run.manifest.run));
            }
        }
    }
    Ok(all)
}

/// Values that this bench derives otherwise from what the runs have seen.
fn otherwise(runs: &[StoredRun]) -> Vec<String> {
    let mut all = Vec::new();
    for run in runs {
        let told = |difference| format!("{}: {difference}", run.manifest.run);
        match derive::again(run) {
            Ok(differences) => all.extend(differences.into_iter().map(told)),
            // The values are there, and can be shown; that they do not follow is told.
            Err(error) => all.push(format!("{}: {error}", run.manifest.run)),
        }
    }
    all
}

/// What tells runs apart where hypervisor and accelerator do not.
fn labels(runs: &[StoredRun]) -> Vec<String> {
    let kind = |run: &StoredRun| {
        let mut kinds: Vec<_> =
            run.samples.iter().map(|s| (s.hypervisor.clone(), s.accelerator.clone())).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    };
    let kinds: Vec<_> = runs.iter().map(kind).collect();
    let alone = |index: usize| {
        kinds
            .iter()
            .enumerate()
            .all(|(i, other)| i == index || other.iter().all(|k| !kinds[index].contains(k)))
    };
    runs.iter()
        .enumerate()
        .map(|(index, run)| if alone(index) { String::new() } else { run.manifest.run.clone() })
        .collect()
}

fn context(runs: &[StoredRun]) -> Context {
    let one = |values: Vec<&str>| {
        let mut values = values;
        values.dedup();
        values.join(", ")
    };
    // Nothing is said where all runs are of the file itself.
    let named = runs.iter().any(|run| run.manifest.scenario.profile.is_some());
    let profiles: Vec<&str> =
        runs.iter().map(|run| run.manifest.scenario.profile.as_deref().unwrap_or("full")).collect();
    Context {
        scenario: one(runs.iter().map(|run| run.scenario.name()).collect()),
        runs: runs.iter().map(|run| run.manifest.run.clone()).collect(),
        profile: named.then(|| one(profiles)),
        peers: runs.iter().flat_map(|run| run.manifest.peers.clone()).collect(),
    }
}

fn pictures(runs: &[StoredRun], analysis: &Analysis, context: &Context) -> Result<Vec<Picture>, ReportError> {
    let wanted = |id: &FigureId| runs.iter().any(|run| run.scenario.figures.contains(id));
    let mut pictures = Vec::new();
    for id in FigureId::ALL.into_iter().filter(wanted) {
        pictures.push(picture(id.to_string(), &id.drawing(analysis, context))?);
    }
    // Of a run by itself: several have too many.
    if let [run] = runs {
        for (arm, drawing) in timelines(run, context) {
            pictures.push(picture(format!("timeline-{arm}"), &drawing)?);
        }
    }
    Ok(pictures)
}

fn picture(id: String, drawing: &Drawing) -> Result<Picture, FigureError> {
    let (svg, png) = (figures::svg(drawing)?, figures::png(drawing)?);
    Ok(Picture { id, title: drawing.title().to_owned(), svg, png })
}

/// The trial of each arm whose migration was the one in the middle, as far as the run kept what it has seen.
fn timelines(run: &StoredRun, context: &Context) -> Vec<(String, Drawing)> {
    // What is damaged is told beside the values.
    let traces = Trace::all(run).unwrap_or_default();
    let mut drawings = Vec::new();
    for arm in &run.scenario.design.arms {
        let mut totals: Vec<_> = run
            .samples
            .iter()
            .filter(|sample| sample.metric == metric::MIGRATION_TOTAL && sample.valid && sample.block > 0)
            .filter(|sample| sample.arm == arm.name() && traces.contains_key(&sample.order))
            .filter_map(|sample| Some((sample.value?, sample)))
            .collect();
        totals.sort_by(|a, b| a.0.total_cmp(&b.0));
        let middle = totals.len().saturating_sub(1) / 2;
        let Some((_, sample)) = totals.get(middle) else { continue };
        let trial = format!("{arm}, block {}", sample.block);
        let drawn = traces.get(&sample.order).and_then(|trace| timeline(trace, &trial, context));
        drawings.extend(drawn.map(|drawn| (arm.to_string(), Drawing::Timeline(drawn))));
    }
    drawings
}

fn render(view: &view::View) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.add_template("report.html", TEMPLATE)?;
    environment.get_template("report.html")?.render(Serde(view))
}

/// Name of an experiment's own unit of comparison.
const fn sides(experiment: Experiment) -> &'static str {
    match experiment {
        Experiment::Migration => "plain and recontextualized migrations of the same block",
        Experiment::Gluster => "before and after recontextualization within the same migration",
        Experiment::Layers => "native and each file system of the same block",
    }
}

#[cfg(test)]
mod tests;
