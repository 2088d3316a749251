//! `bench image build | list | prune`.

use std::collections::BTreeSet;
use std::path::Path;

use clap::Subcommand;
use ctx_io::outln;

use super::{Cache, Display, Error, Image, Manifest, Recipe, build_all};

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build images that are not in the cache yet
    Build {
        /// Recipes by name, or files that end in .toml; all that come with the program when none is given
        recipes: Vec<String>,
        /// Build them even when they are in the cache, with the packages of today
        #[arg(long)]
        afresh: bool,
    },
    /// Show what is in the cache
    List,
    /// Remove images that no recipe of this program describes any more
    Prune {
        /// Remove all others too
        #[arg(long)]
        all: bool,
    },
}

/// Does it; prints results on standard output and shows builds on standard error.
///
/// # Errors
/// Any of [`Error`].
pub fn run(command: &Command) -> Result<(), Error> {
    let cache = Cache::open()?;
    match command {
        Command::Build { recipes, afresh } => {
            let recipes = resolve(recipes)?;
            let display = Display::default();
            for image in build_all(&recipes, &cache, *afresh, &|progress| display.show(progress))? {
                outln!("{}", describe(&image));
            }
        }
        Command::List => {
            let current = current()?;
            for manifest in cache.list()? {
                outln!("{}", row(&manifest, current.contains(&manifest.digest)));
            }
        }
        Command::Prune { all } => {
            let keep = if *all { BTreeSet::new() } else { current()? };
            let pruned = cache.prune(&keep)?;
            for (name, digest) in &pruned.removed {
                outln!("removed {name} {}", short(digest));
            }
            for (name, digest) in &pruned.in_use {
                outln!("kept {name} {}: in use", short(digest));
            }
            outln!("{:.0} MiB freed", mebibytes(pruned.bytes));
        }
    }
    Ok(())
}

/// Names of built-in recipes and paths of recipe files, as recipes.
///
/// # Errors
/// [`Error::Unknown`], [`Error::Recipe`], [`Error::Io`].
pub fn resolve(names: &[String]) -> Result<Vec<Recipe>, Error> {
    if names.is_empty() {
        return Recipe::names().into_iter().map(Recipe::built_in).collect();
    }
    let one = |name: &String| {
        let path = Path::new(name);
        if path.extension().is_some_and(|ending| ending == "toml") {
            Recipe::load(path)
        } else {
            Recipe::built_in(name)
        }
    };
    names.iter().map(one).collect()
}

fn current() -> Result<BTreeSet<String>, Error> {
    Ok(resolve(&[])?.iter().map(Recipe::digest).collect())
}

fn describe(image: &Image) -> String {
    format!("{} {}", row(&image.manifest, true), image.root().display())
}

fn row(manifest: &Manifest, current: bool) -> String {
    let bytes = manifest.files.values().map(|file| file.bytes).sum::<u64>();
    let note = if current { "" } else { "  (no recipe of this program; `bench image prune` removes it)" };
    format!(
        "{:<10} {}  {}  linux {}  {:>5.0} MiB  built in {:.0} s{note}",
        manifest.name,
        short(&manifest.digest),
        manifest.suite,
        manifest.kernel,
        mebibytes(bytes),
        manifest.build_seconds,
    )
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
