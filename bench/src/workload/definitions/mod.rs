//! Workloads that come with the bench, as files: the fields of a [`Workload`](crate::model::Workload), and `[parameters]` with their
//! usual values. A scenario takes one with `use = "fio"`; its other keys set parameters or fields.

/// The definitions, by name.
const ALL: [(&str, &str); 4] = [
    ("bonnie", include_str!("bonnie.toml")),
    ("bonnie-files", include_str!("bonnie-files.toml")),
    ("fio", include_str!("fio.toml")),
    ("iperf3", include_str!("iperf3.toml")),
];

/// The text of a definition.
pub fn find(name: &str) -> Option<&'static str> {
    ALL.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Their names.
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|(name, _)| *name).collect()
}
