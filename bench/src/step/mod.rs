//! The verbs of a scenario: what a step of a trial can do.
//!
//! Each has a module with its arguments, their schema, and what it does. A step in a file is a table with the verb's own key
//! (`migrate = "vm"`), its other arguments, and what every step has (`name`, `phase`, `only`, …), which the compiler takes away
//! before it reads the arguments here. In a [plan](crate::model::Plan) arguments are JSON, checked by having been read once.

pub mod assert;
pub mod command;
pub mod context;
pub mod fault;
pub mod mark;
pub mod migrate;
pub mod mount;
pub mod place;
pub mod probe;
pub mod recontextualize;
pub mod recontextualizer;
pub mod run;
pub mod service;
pub mod shape;
pub mod start;
pub mod stop;
pub mod unmount;
pub mod wait;

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::model::Step;

/// What stands for this machine where a step names a machine.
pub const RUNNER: &str = "runner";
/// The verb of a step that has chains of steps in it, done at the same time.
pub const TOGETHER: &str = "together";
/// Events that every step gives.
pub const OF_ALL: [&str; 2] = ["began", "ended"];

/// One name or several.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Names {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl Names {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
        .iter()
        .map(String::as_str)
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().collect::<Vec<_>>().join(", "))
    }
}

/// The names that a step uses, which must be there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uses<'a> {
    /// Guests.
    pub guests: Vec<&'a str>,
    /// Hosts.
    pub hosts: Vec<&'a str>,
    /// Guests, hosts or servers.
    pub machines: Vec<&'a str>,
    /// Classes of links.
    pub links: Vec<&'a str>,
    /// Workloads.
    pub workloads: Vec<&'a str>,
}

macro_rules! verbs {
    ($($name:ident => $module:ident :: $type:ident, [$($event:literal),*];)*) => {
        /// What a step does, with its arguments.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Verb {
            $(#[doc = concat!("[`", stringify!($module), "`](mod@", stringify!($module), ")")] $type(Box<$module::$type>),)*
        }

        /// The verbs, by the keys that name them; without [`TOGETHER`]. A step that has several of these keys does the first, and the others
        /// are its arguments.
        pub const VERBS: &[&str] = &[$(stringify!($name)),*];

        impl Verb {
            /// Reads the arguments of a verb; none when there is no such verb.
            ///
            /// # Errors
            /// An argument is missing, unknown or wrong.
            pub fn read<'de, D: Deserializer<'de>>(verb: &str, arguments: D) -> Option<Result<Self, D::Error>> {
                match verb {
                    $(stringify!($name) => Some($module::$type::deserialize(arguments).map(|read| Self::$type(Box::new(read)))),)*
                    _ => None,
                }
            }

            /// The arguments as JSON, for a plan.
            ///
            /// # Errors
            /// None that is known: arguments always serialize.
            pub fn to_json(&self) -> serde_json::Result<Value> {
                match self { $(Self::$type(arguments) => serde_json::to_value(arguments)),* }
            }

            /// The names that it uses.
            pub fn uses(&self) -> Uses<'_> {
                match self { $(Self::$type(arguments) => arguments.uses()),* }
            }

            /// The events that it can give beside those of all steps ([`OF_ALL`]).
            pub const fn events(&self) -> &'static [&'static str] {
                match self { $(Self::$type(_) => &[$($event),*]),* }
            }
        }

        /// The schema of each verb's arguments.
        pub fn schemas(generator: &mut SchemaGenerator) -> Vec<(&'static str, Schema)> {
            vec![$((stringify!($name), generator.subschema_for::<$module::$type>())),*]
        }
    };
}

// A verb whose arguments are called like other verbs stands before those.
verbs! {
    place => place::Place, [];
    context => context::Devices, [];
    recontextualizer => recontextualizer::Daemon, [];
    shape => shape::Shape, [];
    migrate => migrate::Migrate, ["migrate_called", "migrate_returned", "lifecycle", "iteration", "job_completed"];
    recontextualize => recontextualize::Recontextualize, ["requested", "recontextualized", "attached"];
    wait => wait::Wait, ["visible", "unsteady", "missed", "recontextualized", "attached"];
    assert => assert::Assert, [];
    fault => fault::Fault, ["fault"];
    service => service::Service, [];
    run => run::Run, ["output"];
    start => start::Start, [];
    stop => stop::Stop, ["output"];
    mount => mount::Mount, [];
    unmount => unmount::Unmount, [];
    probe => probe::Probe, ["output"];
    command => command::Command, ["output"];
    mark => mark::Mark, ["marked"];
}

impl Verb {
    /// The verb of a step of a plan; none for [`TOGETHER`].
    ///
    /// # Errors
    /// The plan was changed, or is of another version.
    pub fn of(step: &Step) -> serde_json::Result<Option<Self>> {
        if step.verb == TOGETHER {
            return Ok(None);
        }
        match Self::read(&step.verb, step.arguments.clone()) {
            Some(read) => read.map(Some),
            None => Err(serde::de::Error::custom(format!("there is no verb `{}`", step.verb))),
        }
    }
}
