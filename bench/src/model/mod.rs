//! What the parts of the bench hand to each other, as plain values: a plan with its machines, programs and definitions, trials,
//! and samples.
//!
//! Nothing here does anything, and nothing here knows an evaluation. What is [compiled](crate::compile) from a scenario is a
//! [`Plan`]; it stands in the manifest of a run, so whatever comes after a run needs its folder alone.

pub mod claim;
pub mod compare;
pub mod figure;
pub mod machine;
pub mod metric;
pub mod plan;
pub mod quantity;
pub mod sample;
pub mod workload;

pub use claim::Claim;
pub use compare::Compare;
pub use figure::Figure;
pub use machine::{
    AcceleratorChoice, Class, Context, Distribution, Guest, GuestType, Hook, Host, Hypervisor, Link, Server,
    Strategy, Testbed, TestbedKind,
};
pub use metric::{Better, Metric};
pub use plan::{Arm, Blocks, Design, Factor, Need, Plan, Source, SourceFile, Step, Trial};
pub use quantity::{Percent, QuantityError, Rate, Size, Time};
pub use sample::Sample;
pub use workload::{ValueOf, Workload};

/// Bytes in lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Gives an enum of names its `name` and `Display`.
macro_rules! names {
    ($type:ident { $($variant:ident => $name:literal),* $(,)? }) => {
        impl $type {
            /// The name in scenario files and samples.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}
pub(crate) use names;
