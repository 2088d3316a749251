//! What this machine is: the part of the manifest that says where a run was made.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::doctor;

/// Name of the load average when a run begins, before anything is booted.
const LOAD_BEFORE: &str = "load_average";
/// Name of the load average when the last trial has ended.
const LOAD_AFTER: &str = "load_average_after";

/// Kernel, processor, memory, load, and the versions of the programs that the bench runs here; null for one that is not there or does not say.
pub fn here() -> Value {
    let version = |program: &str, arguments: &[&str]| json!(doctor::said(program, arguments));
    let field = |file: &str, name: &str| json!(field(&fs::read_to_string(file).unwrap_or_default(), name));
    let mut tools = Map::new();
    let mut put = |name: &str, value: Value| tools.insert(name.to_owned(), value);
    put("kernel", version("uname", &["-srv"]));
    put("processor", field("/proc/cpuinfo", "model name"));
    put("microcode", field("/proc/cpuinfo", "microcode"));
    put("cores", json!(std::thread::available_parallelism().map_or(0, std::num::NonZero::get)));
    put("memory", field("/proc/meminfo", "MemTotal"));
    // A machine that says nothing of these has none.
    if let Some(governors) = governors(Path::new("/sys/devices/system/cpu")) {
        put("cpu_governor", json!(governors));
    }
    if let Some(nodes) = numa_nodes(Path::new("/sys/devices/system/node")) {
        put("numa_nodes", json!(nodes));
    }
    put(LOAD_BEFORE, json!(load()));
    put("libvirt", json!(doctor::libvirt_library()));
    for (name, program, arguments) in PROGRAMS {
        put(name, version(program, arguments));
    }
    Value::Object(tools)
}

/// Programs of this machine that a run uses, and how each is asked for its version.
const PROGRAMS: [(&str, &str, &[&str]); 6] = [
    ("qemu", "qemu-system-x86_64", &["--version"]),
    ("ssh", "ssh", &["-V"]),
    ("ip", "ip", &["-V"]),
    ("ping", "ping", &["-V"]),
    ("mke2fs", "mke2fs", &["-V"]),
    ("unshare", "unshare", &["--version"]),
];

/// Adds the load after a run to what [`here`] has found before it.
pub fn ended(tools: &mut Value) {
    if let Some(tools) = tools.as_object_mut() {
        tools.insert(LOAD_AFTER.to_owned(), json!(load()));
    }
}

fn load() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

/// The value of the first line `NAME : VALUE` of a table of the kernel's.
fn field(table: &str, name: &str) -> Option<String> {
    let line = table.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// What chooses the processors' frequency, each once; none where nothing does.
fn governors(cpus: &Path) -> Option<String> {
    let of = |cpu: fs::DirEntry| {
        let text = fs::read_to_string(cpu.path().join("cpufreq/scaling_governor")).ok()?;
        Some(text.trim().to_owned())
    };
    let found: BTreeSet<String> = fs::read_dir(cpus).ok()?.flatten().filter_map(of).collect();
    (!found.is_empty()).then(|| found.into_iter().collect::<Vec<_>>().join(", "))
}

/// How many nodes the memory has; none where the kernel does not say.
fn numa_nodes(folder: &Path) -> Option<usize> {
    let is_node = |entry: &fs::DirEntry| {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("node"));
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let count = fs::read_dir(folder).ok()?.flatten().filter(is_node).count();
    (count > 0).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_that_is_there_has_a_version() {
        let tools = here();
        for (name, program, _) in PROGRAMS {
            let said = tools[name].as_str().unwrap_or_default();
            assert_eq!(!said.is_empty(), doctor::which(program).is_some(), "{name}: {said:?}");
        }
        if tools["ssh"].is_string() {
            // It writes to standard error.
            assert!(tools["ssh"].as_str().unwrap().contains("SSH"), "{}", tools["ssh"]);
        }
        assert!(tools["kernel"].as_str().unwrap().starts_with("Linux "), "{}", tools["kernel"]);
        assert!(tools["memory"].as_str().unwrap().ends_with("kB"), "{}", tools["memory"]);
    }

    #[test]
    fn the_load_after_a_run_stands_beside_that_before() {
        let mut tools = json!({ LOAD_BEFORE: "9.99" });
        ended(&mut tools);
        assert_eq!(tools[LOAD_BEFORE], "9.99");
        assert_eq!(tools[LOAD_AFTER].as_str().unwrap().split(' ').count(), 5, "{tools}");
        // A run that was described by nobody has no section to put it in.
        let mut none = Value::Null;
        ended(&mut none);
        assert!(none.is_null());
    }

    #[test]
    fn governors_and_nodes_are_counted_once_each() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!((governors(folder.path()), numa_nodes(folder.path())), (None, None));
        assert_eq!(numa_nodes(&folder.path().join("none")), None);
        for (cpu, governor) in [("cpu0", "powersave"), ("cpu1", "performance"), ("cpu2", "powersave")] {
            let cpu = folder.path().join(cpu).join("cpufreq");
            fs::create_dir_all(&cpu).unwrap();
            fs::write(cpu.join("scaling_governor"), format!("{governor}\n")).unwrap();
        }
        for name in ["node0", "node1", "node", "node_x", "possible"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert_eq!(governors(folder.path()).as_deref(), Some("performance, powersave"));
        assert_eq!(numa_nodes(folder.path()), Some(2));
    }
}
