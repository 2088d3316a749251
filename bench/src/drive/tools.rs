//! What this machine is: the part of the manifest that says where a run was made.

use std::process::Command;

use serde_json::{Value, json};

/// Kernel, processor, memory, and the versions of the programs that the bench runs here.
pub fn here() -> Value {
    let first_line = |program: &str, arguments: &[&str]| -> Value {
        crate::program::first_line(Command::new(program).args(arguments)).map_or(Value::Null, Value::String)
    };
    let field = |file: &str, name: &str| -> Value {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map_or(Value::Null, |(_, v)| Value::String(v.trim().to_owned()))
    };
    json!({
        "kernel": first_line("uname", &["-srv"]),
        "processor": field("/proc/cpuinfo", "model name"),
        "microcode": field("/proc/cpuinfo", "microcode"),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memory": field("/proc/meminfo", "MemTotal"),
        "load_average": std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
        "qemu": first_line("qemu-system-x86_64", &["--version"]),
        "ssh": first_line("ssh", &["-V"]),
        "ip": first_line("ip", &["-V"]),
    })
}
