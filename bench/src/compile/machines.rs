//! What must hold of machines, links and testbeds.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::place;
use crate::language::read::read;
use crate::language::text::Fault;
use crate::language::tree::{Node, Table};
use crate::model::{
    Class, Guest, GuestType, Host, Hypervisor, Link, Percent, Plan, Rate, Server, Size, Strategy,
    TestbedKind, Time,
};
use crate::step::Verb;
use crate::testbed::address::{Member, Network, Role};
use crate::workload::SERVICES;

/// The most machines of each role.
pub(super) const MOST: usize = 16;

/// Names that a scenario can use for addresses and sites of its machines: `host.a.management`.
pub(super) fn names(tables: &Table) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for (list, role) in [("host", Role::Host), ("server", Role::Server), ("guest", Role::Guest)] {
        for (index, (_, item)) in (0_u8..).zip(tables.items(list)).take(MOST) {
            let Some(name) = item.name() else { continue };
            let member = Member { role, index };
            for &network in role.networks() {
                names.insert(format!("{list}.{name}.{}", of(network)), member.address(network).to_string());
            }
            let site = item.get("site").and_then(Node::text).unwrap_or(name);
            names.insert(format!("{list}.{name}.site"), site.to_owned());
        }
    }
    names
}

const fn of(network: Network) -> &'static str {
    match network {
        Network::Management => "management",
        Network::Migration => "migration",
        Network::Data => "data",
    }
}

/// A key of a table, or the table.
fn at(node: &Node, key: &str) -> Range<usize> {
    node.table().and_then(|table| table.get(key)).map_or_else(|| node.span.clone(), |node| node.span.clone())
}

/// A name that can be a host's (RFC 1123), at most as long as names of devices allow.
fn name(name: &str, node: &Node) -> Result<(), Fault> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = !name.is_empty()
        && name.len() <= 32
        && name.chars().all(plain)
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name != crate::step::RUNNER;
    if good {
        return Ok(());
    }
    let help = "use up to 32 lower-case letters, digits and `-`; `runner` is this machine";
    Err(Fault::new(at(node, "name"), format!("`{name}` cannot be the name of a machine"), help))
}

fn few<T>(items: &[T], nodes: &[Node], noun: &str) -> Result<(), Fault> {
    match nodes.get(MOST) {
        Some(node) if items.len() > MOST => {
            let message = format!("{} {noun}s, and {MOST} are the most", items.len());
            Err(Fault::new(node.span.clone(), message, "use fewer"))
        }
        _ => Ok(()),
    }
}

/// Refuses a value that a tool would be told rounded, or that is outside of what it takes.
fn within<T: PartialOrd + std::fmt::Display + Copy>(
    value: T,
    least: T,
    most: T,
    node: &Node,
    key: &str,
) -> Result<(), Fault> {
    if value >= least && value <= most {
        return Ok(());
    }
    let message = format!("{key} = \"{value}\" is out of its range");
    Err(Fault::new(at(node, key), message, format!("use \"{least}\" to \"{most}\"")))
}

fn whole(rest: u64, value: impl std::fmt::Display, why: &str, node: &Node, key: &str) -> Result<(), Fault> {
    if rest == 0 {
        return Ok(());
    }
    Err(Fault::new(
        at(node, key),
        format!("{why}, and {value} would be rounded"),
        "use a whole number of them",
    ))
}

fn memory(size: Size, least: Size, node: &Node) -> Result<(), Fault> {
    within(size, least, Size::from_mib(1 << 20), node, "memory")?;
    whole(size.bytes() % (1 << 20), size, "memory is in whole MiB", node, "memory")
}

/// Reads hosts.
pub(super) fn hosts(nodes: &[Node]) -> Result<Vec<Host>, Fault> {
    let mut hosts: Vec<Host> = nodes.iter().map(read).collect::<Result<_, _>>()?;
    few(&hosts, nodes, "host")?;
    for (host, node) in hosts.iter_mut().zip(nodes) {
        name(&host.name, node)?;
        if host.site.is_empty() {
            host.site.clone_from(&host.name);
        }
        if let Some(size) = host.memory {
            memory(size, Size::from_mib(256), node)?;
        }
        if host.payload > Size::from_mib(600) {
            let message = format!("payload = \"{}\" does not fit on a CD", host.payload);
            return Err(Fault::new(at(node, "payload"), message, "use at most \"600 MiB\"; 1 MiB is usual"));
        }
        paths(host.context.keys(), node, "context")?;
    }
    Ok(hosts)
}

/// Paths within the context are relative, and have no way out.
fn paths<'a>(all: impl Iterator<Item = &'a String>, node: &Node, key: &str) -> Result<(), Fault> {
    for path in all {
        if ctx_format::RelPath::new(path).is_err() || path == "site" || path == "payload" {
            let message = format!("`{path}` cannot be a file of the context");
            return Err(Fault::new(
                at(node, key),
                message,
                "use a relative path; `site` and `payload` are there anyway",
            ));
        }
    }
    Ok(())
}

/// Reads servers.
pub(super) fn servers(nodes: &[Node]) -> Result<Vec<Server>, Fault> {
    let mut servers: Vec<Server> = nodes.iter().map(read).collect::<Result<_, _>>()?;
    few(&servers, nodes, "server")?;
    for (server, node) in servers.iter_mut().zip(nodes) {
        name(&server.name, node)?;
        if server.site.is_empty() {
            server.site.clone_from(&server.name);
        }
        memory(server.memory, Size::from_mib(256), node)?;
        absolute(server.files.keys(), node)?;
    }
    Ok(servers)
}

fn absolute<'a>(all: impl Iterator<Item = &'a String>, node: &Node) -> Result<(), Fault> {
    for path in all {
        let good = path.starts_with('/') && path.len() < 1024 && !path.split('/').any(|part| part == "..");
        if !good {
            return Err(Fault::new(
                at(node, "files"),
                format!("`{path}` is no absolute path"),
                "begin it with `/`",
            ));
        }
    }
    Ok(())
}

/// Reads guests, and checks what their hosts can run.
pub(super) fn guests(nodes: &[Node], hosts: &[Host]) -> Result<Vec<Guest>, Fault> {
    let guests: Vec<Guest> = nodes.iter().map(read).collect::<Result<_, _>>()?;
    few(&guests, nodes, "guest")?;
    for (guest, node) in guests.iter().zip(nodes) {
        name(&guest.name, node)?;
        memory(guest.memory, Size::from_mib(64), node)?;
        absolute(guest.files.keys(), node)?;
        let Some(host) = hosts.iter().find(|host| host.name == guest.at) else {
            let known: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
            let message =
                format!("guest `{}` starts at a host `{}` that the file does not have", guest.name, guest.at);
            return Err(Fault::new(at(node, "at"), message, format!("hosts are {}", known.join(", "))));
        };
        let (kind, strategy) = (guest.kind_on(host.hypervisor), guest.context.strategy);
        match (host.hypervisor, kind) {
            (Hypervisor::Kvm, GuestType::Pvh | GuestType::Pv) => {
                let help = "remove it, or set hypervisor = \"xen\" for its hosts";
                return Err(Fault::new(
                    at(node, "type"),
                    format!("KVM runs no guest of type `{kind}`"),
                    help,
                ));
            }
            (Hypervisor::Xen, GuestType::Pvh | GuestType::Pv) if strategy == Strategy::Swap => {
                let message = format!("a {kind} guest has no CD-ROM drive: nothing to {strategy}");
                return Err(Fault::new(
                    at(node, "context"),
                    message,
                    "use strategy = \"replace\", or type = \"hvm\"",
                ));
            }
            _ => {}
        }
        let classes = &guest.context.classes;
        if !classes.contains(&Class::Infrastructure) {
            let message = "without class `infrastructure` there is nothing to replace";
            return Err(Fault::new(at(node, "context"), message, "add \"infrastructure\" to its classes"));
        }
        if let Some(twice) =
            classes.iter().enumerate().find(|(index, class)| classes[..*index].contains(class))
        {
            let message = format!("class `{}` is there twice", twice.1);
            return Err(Fault::new(at(node, "context"), message, "name each once"));
        }
    }
    Ok(guests)
}

/// Reads links.
pub(super) fn links(nodes: &[Node]) -> Result<Vec<Link>, Fault> {
    let links: Vec<Link> = nodes.iter().map(read).collect::<Result<_, _>>()?;
    let (rate, hundred) = (Rate::from_bits_per_second, Percent::from_percent(100));
    for (link, node) in links.iter().zip(nodes) {
        within(link.rate, rate(8000), rate(100_000_000_000), node, "rate")?;
        within(link.delay, Time::from_nanos(0), Time::from_secs(4), node, "delay")?;
        for (key, value) in [("jitter", link.jitter), ("correlation", link.correlation)] {
            within(value, Percent::default(), hundred, node, key)?;
        }
        if link.tolerance > hundred || link.tolerance.fraction() <= 0.0 {
            let message = format!("tolerance = \"{}\" accepts any link, or none", link.tolerance);
            return Err(Fault::new(at(node, "tolerance"), message, "use for example \"30 %\""));
        }
        whole(link.rate.bits_per_second() % 8, link.rate, "netem takes whole bytes a second", node, "rate")?;
        let halves = "half of a delay is in each direction, in whole nanoseconds";
        whole(link.delay.nanos() % 2, link.delay, halves, node, "delay")?;
    }
    Ok(links)
}

/// What must hold between machines, arms and the testbed.
pub(super) fn check(plan: &mut Plan, tables: &Table) -> Result<(), Fault> {
    unique(plan, tables)?;
    testbed(plan, tables)?;
    // What another boot of hosts would be needed for is the same in all arms; the rest is the arm's own.
    for arm in &mut plan.arms {
        for host in &plan.hosts {
            let Some(own) = arm.hosts.get(&host.name) else { continue };
            let alike = Host { context: host.context.clone(), payload: host.payload, ..own.clone() };
            if alike != *host {
                let message = format!("arm `{}` changes what host `{}` is booted with", arm.name, host.name);
                let help = "arms may set a host's `context` and `payload`; for the rest write two scenarios";
                return Err(Fault::new(place(tables, "host", &host.name, None), message, help));
            }
        }
        let hosts = &plan.hosts;
        arm.hosts.retain(|name, own| hosts.iter().any(|host| host.name == *name && host != own));
    }
    Ok(())
}

fn unique(plan: &Plan, tables: &Table) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    let guests = tables.items("guest").filter_map(|(_, guest)| guest.name());
    let all = plan.hosts.iter().map(|host| ("host", host.name.as_str()));
    let all = all.chain(plan.servers.iter().map(|server| ("server", server.name.as_str())));
    for (list, name) in all.chain(guests.map(|name| ("guest", name))) {
        if !seen.insert(name) {
            let message = format!("two machines are called `{name}`");
            return Err(Fault::new(place(tables, list, name, Some("name")), message, "name each once"));
        }
    }
    Ok(())
}

fn testbed(plan: &Plan, tables: &Table) -> Result<(), Fault> {
    let local = plan.testbed.kind == TestbedKind::Local;
    let fail = |message: String, help: &str| Err(Fault::new(0..0, message, help));
    if plan.testbed.kind == TestbedKind::Inventory {
        return fail("this bench drives no given hosts yet".into(), "set [testbed] kind = \"nested\"");
    }
    if local {
        for list in ["host", "server", "guest", "link"] {
            if let Some((span, _)) = tables.items(list).next() {
                let message = format!("a local testbed has no {list}");
                return Err(Fault::new(
                    span.clone(),
                    message,
                    "remove it, or set [testbed] kind = \"nested\"",
                ));
            }
        }
    } else if plan.hosts.is_empty() {
        return fail(
            "there is no host".into(),
            "write [[host]] and name = \"a\", or set [testbed] kind = \"local\"",
        );
    }
    for arm in &plan.arms {
        for step in every(&arm.program) {
            let fits = match step.verb.as_str() {
                "mount" | "unmount" | "probe" => local,
                "run" | "start" | "stop" | "command" | "assert" | "mark" | "together" => true,
                "wait" => !local || step.arguments["wait"] == "time" || step.arguments["wait"] == "command",
                _ => !local,
            };
            if !fits {
                let kind = plan.testbed.kind;
                let message = format!("step `{}`: a {kind} testbed cannot `{}`", step.name, step.verb);
                let span = place_of_step(tables, &step.name);
                return Err(Fault::new(span, message, "remove it, or choose another [testbed] kind"));
            }
            if let Ok(Some(verb)) = Verb::of(step) {
                verb_values(&verb, plan, &step.name, tables)?;
                one_kind(&verb, plan, &arm.guests, &step.name, tables)?;
            }
        }
    }
    Ok(())
}

/// A guest that runs goes to no host with another hypervisor.
fn one_kind(verb: &Verb, plan: &Plan, guests: &[Guest], step: &str, tables: &Table) -> Result<(), Fault> {
    let Verb::Migrate(migrate) = verb else { return Ok(()) };
    let kind = |name: &str| plan.hosts.iter().find(|host| host.name == name).map(|host| host.hypervisor);
    let targets: Vec<&str> = migrate.to.iter().collect();
    for (index, name) in migrate.migrate.iter().enumerate() {
        let Some(guest) = guests.iter().find(|guest| guest.name == name) else { continue };
        let Some(to) = targets.get(index).or_else(|| targets.first()) else { continue };
        if let (Some(from), Some(there)) = (kind(&guest.at), kind(to))
            && from != there
        {
            let message = format!("step `{step}`: guest `{name}` runs on {from}, and host `{to}` is {there}");
            let help = "live migrations are between hosts of one hypervisor";
            return Err(Fault::new(place_of_step(tables, step), message, help));
        }
    }
    Ok(())
}

/// What tools take of a verb's values.
fn verb_values(verb: &Verb, plan: &Plan, step: &str, tables: &Table) -> Result<(), Fault> {
    let fail = |message: String, help: &str| Err(Fault::new(place_of_step(tables, step), message, help));
    match verb {
        Verb::Migrate(migrate) => {
            let (guests, hosts) = (migrate.migrate.iter().count(), migrate.to.iter().count());
            if hosts != 1 && hosts != guests {
                return fail(
                    format!("step `{step}`: {guests} guests go to {hosts} hosts"),
                    "give one host, or one each",
                );
            }
            // QEMU takes at most 2000 s, in whole milliseconds.
            if let Some(time) = migrate.max_downtime {
                let (least, most) = (Time::from_millis(1), Time::from_secs(2000));
                if !(least..=most).contains(&time) || time.nanos() % 1_000_000 != 0 {
                    let help =
                        format!("use \"{least}\" to \"{most}\", in whole milliseconds; 300 ms is usual");
                    return fail(format!("step `{step}`: max_downtime = \"{time}\""), &help);
                }
            }
        }
        Verb::Shape(shape) => {
            let servers = |name: &str| plan.servers.iter().any(|server| server.name == name);
            if !shape.shape.iter().any(|name| servers(name)) {
                return fail(
                    format!("step `{step}`: neither end of the link is a server"),
                    "links are shaped at a server",
                );
            }
            if let Some(dilation) = shape.dilation {
                for value in [dilation.hardware, dilation.emulated].into_iter().flatten() {
                    if !(1.0..=100.0).contains(&value) {
                        return fail(
                            format!("step `{step}`: dilation = {value} (emulated, hardware)"),
                            "use 1 to 100",
                        );
                    }
                }
            }
        }
        Verb::Service(service)
            if !SERVICES.contains(&service.service.as_str()) && service.start.is_none() =>
        {
            let help = format!(
                "known is {}; give another one its `start` and `ready` commands",
                SERVICES.join(", ")
            );
            return fail(format!("step `{step}`: the bench knows no service `{}`", service.service), &help);
        }
        _ => {}
    }
    Ok(())
}

/// All steps of a program, those of chains included.
pub(super) fn every(program: &[crate::model::Step]) -> Vec<&crate::model::Step> {
    program
        .iter()
        .flat_map(|step| std::iter::once(step).chain(step.chains.iter().flat_map(|chain| every(chain))))
        .collect()
}

fn place_of_step(tables: &Table, name: &str) -> Range<usize> {
    let mut steps = tables.items("step");
    steps
        .find(|(_, step)| step.name() == Some(name) || step.get(name).is_some())
        .map_or(0..0, |(span, _)| span.clone())
}
