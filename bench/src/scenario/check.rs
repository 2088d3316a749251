//! What the fields of a scenario mean together, beyond their types.

use super::{
    AcceleratorChoice, Arm, Bonnie, Class, Experiment, GuestType, Hypervisor, Scenario, Size, Strategy,
    TestbedKind, Time, layers,
    overlay::{Fault, Table, place},
};
use crate::figures::FigureId;

/// Refuses what cannot be measured; gives `[bonnie]` its defaults where the experiment needs it.
pub(super) fn check(scenario: &mut Scenario, table: &Table<'_>) -> Result<(), Fault> {
    let at = At::of(table);
    if scenario.title.trim().is_empty() {
        return at.fail(&["title"], None, "the title is empty", "say in one line what is measured");
    }
    design(scenario, &at)?;
    machines(scenario, &at)?;
    recontext(scenario, &at)?;
    if scenario.layers.is_some() && scenario.experiment != Experiment::Layers {
        let message = format!("[layers] has no meaning in experiment \"{}\"", scenario.experiment);
        return at.fail(&["layers"], None, &message, "remove it, or set experiment = \"layers\"");
    }
    match scenario.experiment {
        Experiment::Layers => layers::check(scenario, &at)?,
        Experiment::Migration => {
            for (name, there) in
                [("network", scenario.network.is_some()), ("bonnie", scenario.bonnie.is_some())]
            {
                if there {
                    let message = format!("[{name}] has no meaning in experiment \"migration\"");
                    return at.fail(&[name], None, &message, "remove it, or set experiment = \"gluster\"");
                }
            }
        }
        Experiment::Gluster => gluster(scenario, &at)?,
    }
    figures(scenario, &at)
}

/// The file's tables, to point into.
pub(super) struct At<'a, 'b> {
    table: &'a Table<'b>,
}

impl<'a, 'b> At<'a, 'b> {
    pub(super) const fn of(table: &'a Table<'b>) -> Self {
        Self { table }
    }

    pub(super) fn fail(
        &self,
        path: &[&str],
        index: Option<usize>,
        message: &str,
        help: &str,
    ) -> Result<(), Fault> {
        let span = place(self.table, path, index);
        Err(Fault { span, message: message.into(), help: help.into() })
    }

    /// Whether the file, or the profile over it, says anything under this path.
    pub(super) fn says(&self, table: &str, field: Option<&str>) -> bool {
        let there = self.table.get_ref().get(table);
        match field {
            None => there.is_some(),
            Some(field) => there
                .and_then(|value| value.get_ref().as_table())
                .is_some_and(|table| table.get(field).is_some()),
        }
    }

    /// Refuses the second of two equal items.
    fn no_twins<T: PartialEq + std::fmt::Display>(
        &self,
        path: &[&str],
        items: &[T],
        noun: &str,
    ) -> Result<(), Fault> {
        for (index, item) in items.iter().enumerate() {
            if items[..index].contains(item) {
                let message = format!("{noun} `{item}` is there twice");
                return self.fail(path, Some(index), &message, "name each once");
            }
        }
        Ok(())
    }
}

fn design(scenario: &Scenario, at: &At<'_, '_>) -> Result<(), Fault> {
    let design = &scenario.design;
    let arms = &["design", "arms"];
    if design.arms.is_empty() {
        return at.fail(arms, None, "there is no arm", "write for example arms = [\"plain\", \"recontext\"]");
    }
    at.no_twins(arms, &design.arms, "arm")?;
    if scenario.experiment == Experiment::Gluster
        && let Some(index) = design.arms.iter().position(|arm| *arm != Arm::Recontext)
    {
        return at.fail(
            arms,
            Some(index),
            &format!("arm `{}` does not fit experiment \"gluster\"", design.arms[index]),
            "write arms = [\"recontext\"]: before and after are compared within each migration",
        );
    }
    if let Some(index) = design.arms.iter().position(|arm| !arm.fits(scenario.experiment)) {
        let message =
            format!("arm `{}` does not fit experiment \"{}\"", design.arms[index], scenario.experiment);
        let help = if scenario.experiment == Experiment::Layers {
            "use native, overlayfs, fuse-overlayfs, mergerfs, mergerfs-passthrough, unionfs-fuse, ffs or ffs-passthrough"
        } else {
            "use plain or recontext, or set experiment = \"layers\""
        };
        return at.fail(arms, Some(index), &message, help);
    }
    if design.blocks == 0 || design.blocks > 10_000 {
        let message = format!("blocks = {} measures nothing that counts", design.blocks);
        let message =
            if design.blocks == 0 { message } else { format!("{} blocks are too many", design.blocks) };
        return at.fail(&["design", "blocks"], None, &message, "use 1 to 10000; the paper did 10");
    }
    if design.warmup > 100 {
        let message = format!("{} blocks of warm-up are too many", design.warmup);
        return at.fail(&["design", "warmup"], None, &message, "use 0 to 100; 1 is usual");
    }
    deadlines(scenario, at)
}

fn deadlines(scenario: &Scenario, at: &At<'_, '_>) -> Result<(), Fault> {
    let design = &scenario.design;
    let (least, most) = (Time::from_secs(1), Time::from_secs(30 * 24 * 3600));
    for (name, time) in [("trial_deadline", design.trial_deadline), ("run_deadline", design.run_deadline)] {
        if let Some(time) = time
            && !(least..=most).contains(&time)
        {
            let message = format!("{name} = \"{time}\" gives up everything, or nothing");
            let help = format!(
                "use \"{least}\" to \"{most}\", or remove it: by default it follows from the estimate"
            );
            return at.fail(&["design", name], None, &message, &help);
        }
    }
    if let (Some(trial), Some(run)) = (design.trial_deadline, design.run_deadline)
        && trial > run
    {
        let message = format!("a trial may take \"{trial}\", and the run that it is in \"{run}\"");
        let help = "use at most run_deadline, or remove it: by default it follows from the estimate";
        return at.fail(&["design", "trial_deadline"], None, &message, help);
    }
    // A migration that is given up says more than a trial that is.
    if let Some(trial) = design.trial_deadline
        && scenario.experiment != Experiment::Layers
        && trial <= scenario.migration.timeout
    {
        let timeout = scenario.migration.timeout;
        let message =
            format!("trial_deadline = \"{trial}\" is no longer than migration.timeout, \"{timeout}\"");
        let help = "use more, or set migration.timeout to less";
        return at.fail(&["design", "trial_deadline"], None, &message, help);
    }
    Ok(())
}

fn machines(scenario: &Scenario, at: &At<'_, '_>) -> Result<(), Fault> {
    let testbed = &scenario.testbed;
    if !(2..=16).contains(&testbed.hosts) {
        let message =
            format!("{} hosts: a guest migrates between at least 2, and 16 are the most", testbed.hosts);
        return at.fail(&["testbed", "hosts"], None, &message, "write hosts = 2");
    }
    if !(1..=16).contains(&testbed.host_vcpus) {
        let message = format!("{} virtual processors a host", testbed.host_vcpus);
        return at.fail(&["testbed", "host_vcpus"], None, &message, "use 1 to 16");
    }
    if testbed.kind == TestbedKind::Inventory && at.says("testbed", Some("host_vcpus")) {
        let help = "remove it, or set kind = \"nested\"";
        return at.fail(
            &["testbed", "host_vcpus"],
            None,
            "given hosts have the processors that they have",
            help,
        );
    }
    let dilations = [
        ("dilation", testbed.dilation),
        ("emulated_dilation", Some(testbed.emulated_dilation)),
        ("file_dilation", testbed.file_dilation),
    ];
    for (name, value) in dilations {
        if let Some(value) = value
            && !(1.0..=100.0).contains(&value)
        {
            let message = format!("{name} = {value} is outside 1 to 100");
            let help = "it divides rates and multiplies delays; 1 is real time";
            return at.fail(&["testbed", name], None, &message, help);
        }
    }
    match (testbed.kind, &testbed.inventory) {
        (TestbedKind::Inventory, None) => {
            let help = "add inventory = \"hosts.toml\", or set kind = \"nested\"";
            return at.fail(&["testbed", "kind"], None, "an inventory testbed needs its file", help);
        }
        (TestbedKind::Inventory, _) if testbed.accelerator != AcceleratorChoice::Auto => {
            let help = "remove it, or set kind = \"nested\"";
            let message = "hosts of an inventory are not booted: they have their accelerator";
            return at.fail(&["testbed", "accelerator"], None, message, help);
        }
        (TestbedKind::Nested, Some(_)) => {
            let help = "remove it, or set kind = \"inventory\"";
            return at.fail(&["testbed", "inventory"], None, "a nested testbed has no inventory", help);
        }
        (TestbedKind::Local, _) if scenario.experiment != Experiment::Layers => {
            let message =
                format!("experiment \"{}\" needs hosts, and a local testbed has none", scenario.experiment);
            let help = "set kind = \"nested\", or experiment = \"layers\"";
            return at.fail(&["testbed", "kind"], None, &message, help);
        }
        _ => {}
    }
    if scenario.guest.memory < Size::from_mib(64) || scenario.guest.memory > Size::from_mib(1 << 20) {
        let message = format!("{} of memory do not boot a guest", scenario.guest.memory);
        let help = "use \"64 MiB\" to \"1024 GiB\"; 256 MiB is usual";
        return at.fail(&["guest", "memory"], None, &message, help);
    }
    if !(1..=64).contains(&scenario.guest.vcpus) {
        let message = format!("{} virtual CPUs", scenario.guest.vcpus);
        return at.fail(&["guest", "vcpus"], None, &message, "use 1 to 64");
    }
    guest_type(scenario, at)?;
    // QEMU takes at most 2000 s.
    let migration = &scenario.migration;
    let times = [
        ("max_downtime", migration.max_downtime, Time::from_millis(1), Time::from_secs(2000), "300 ms"),
        ("timeout", migration.timeout, Time::from_secs(1), Time::from_secs(24 * 3600), "5 min"),
    ];
    for (name, time, least, most, usual) in times {
        if !(least..=most).contains(&time) {
            let message = format!("with {name} = \"{time}\" no migration ends well");
            let help = format!("use \"{least}\" to \"{most}\"; {usual} is usual");
            return at.fail(&["migration", name], None, &message, &help);
        }
    }
    Ok(())
}

/// Which guests a hypervisor runs, and which of their context devices can be changed how.
fn guest_type(scenario: &Scenario, at: &At<'_, '_>) -> Result<(), Fault> {
    let hypervisor = scenario.testbed.hypervisor;
    let kind = scenario.guest.kind_on(hypervisor);
    let strategy = scenario.recontext.strategy;
    match (hypervisor, kind) {
        (Hypervisor::Kvm, GuestType::Pvh | GuestType::Pv) => {
            let message = format!("KVM runs no guest of type `{kind}`");
            let help = "remove it, or set testbed.hypervisor = \"xen\"";
            at.fail(&["guest", "type"], None, &message, help)
        }
        (Hypervisor::Xen, GuestType::Pvh | GuestType::Pv) if strategy == Strategy::Swap => {
            let message = format!("a {kind} guest has no CD-ROM drive: nothing to {strategy}");
            let help = "use strategy = \"replace\", or set guest.type = \"hvm\"";
            at.fail(&["recontext", "strategy"], None, &message, help)
        }
        _ => Ok(()),
    }
}

fn recontext(scenario: &Scenario, at: &At<'_, '_>) -> Result<(), Fault> {
    let classes = &["recontext", "classes"];
    at.no_twins(classes, &scenario.recontext.classes, "class")?;
    if !scenario.recontext.classes.contains(&Class::Infrastructure) {
        let help = "add \"infrastructure\"";
        return at.fail(classes, None, "without class `infrastructure` there is nothing to replace", help);
    }
    if scenario.recontext.payload > Size::from_mib(600) {
        let message = format!("a payload of {} does not fit on a CD", scenario.recontext.payload);
        return at.fail(&["recontext", "payload"], None, &message, "use at most \"600 MiB\"; 1 MiB is usual");
    }
    Ok(())
}

fn gluster(scenario: &mut Scenario, at: &At<'_, '_>) -> Result<(), Fault> {
    let Some(network) = &scenario.network else {
        let help = "add [network.remote] and [network.local] with rate and delay";
        return at.fail(&["experiment"], None, "experiment \"gluster\" needs its links", help);
    };
    let hundred = super::Percent::from_percent(100);
    if network.tolerance > hundred || network.tolerance.fraction() == 0.0 {
        let message = format!("no measured link is within {}", network.tolerance);
        let message = if network.tolerance > hundred {
            "a tolerance above 100 % accepts any link".into()
        } else {
            message
        };
        return at.fail(&["network", "tolerance"], None, &message, "use for example \"30 %\"");
    }
    for (name, link) in [("remote", &network.remote), ("local", &network.local)] {
        let carried = 8000..=100_000_000_000;
        if !carried.contains(&link.rate.bits_per_second()) {
            let message = format!("a link of {} carries nothing, or more than any machine", link.rate);
            let help = "use \"8 kbit/s\" to \"100 Gbit/s\"";
            return at.fail(&["network", name, "rate"], None, &message, help);
        }
        if link.delay > Time::from_secs(4) {
            let message = format!("a delay of {} is more than netem keeps", link.delay);
            return at.fail(&["network", name, "delay"], None, &message, "use at most \"4 s\"");
        }
        for (field, value) in [("jitter", link.jitter), ("correlation", link.correlation)] {
            if value > hundred {
                let message = format!("a {field} of {value} is more than all of it");
                return at.fail(&["network", name, field], None, &message, "use at most \"100 %\"");
            }
        }
    }
    let bonnie = scenario.bonnie.get_or_insert_with(Bonnie::default);
    let most = Size::from_mib(1 << 20);
    if bonnie.size.bytes() == 0 || bonnie.size > most {
        let message = format!("Bonnie++ takes files of 1 MiB to {most}, not {}", bonnie.size);
        return at.fail(&["bonnie", "size"], None, &message, "use for example \"8 MiB\"");
    }
    if bonnie.per_char > bonnie.size {
        let message = format!("per_char = \"{}\" is more than the file's {}", bonnie.per_char, bonnie.size);
        return at.fail(&["bonnie", "per_char"], None, &message, "use \"0 B\", which skips it, up to `size`");
    }
    if !(1..=1_000_000).contains(&bonnie.seeks) {
        let message = format!("seeks = {} is outside 1 to 1000000", bonnie.seeks);
        return at.fail(&["bonnie", "seeks"], None, &message, "100 are usual on a slow link");
    }
    let whole = bonnie.chunk.bytes().is_power_of_two();
    if !whole || bonnie.chunk > bonnie.size || bonnie.chunk > Size::from_mib(1) {
        let message = format!("Bonnie++ takes chunks of 1 KiB to 1 MiB in powers of 2, not {}", bonnie.chunk);
        return at.fail(&["bonnie", "chunk"], None, &message, "use for example \"64 KiB\"");
    }
    if bonnie.files > 1000 {
        let message = format!("files = {} are {} files", bonnie.files, u64::from(bonnie.files) * 1024);
        return at.fail(&["bonnie", "files"], None, &message, "it counts in 1024; 1 is usual");
    }
    // A default is no mistake: with fewer blocks the file operations just run in all of them.
    if bonnie.file_blocks > scenario.design.blocks {
        let message =
            format!("file operations in {} of {} blocks", bonnie.file_blocks, scenario.design.blocks);
        return at.fail(&["bonnie", "file_blocks"], None, &message, "use at most as many as [design] blocks");
    }
    Ok(())
}

fn figures(scenario: &Scenario, at: &At<'_, '_>) -> Result<(), Fault> {
    at.no_twins(&["figures"], &scenario.figures, "figure")?;
    for (index, figure) in scenario.figures.iter().enumerate() {
        if figure.experiment() != scenario.experiment {
            return at.fail(
                &["figures"],
                Some(index),
                &format!("figure `{figure}` does not fit experiment \"{}\"", scenario.experiment),
                &format!("remove it, or set experiment = \"{}\"", figure.experiment()),
            );
        }
        let needs: &[Arm] = match figure {
            FigureId::Fig1 => &[Arm::Plain, Arm::Recontext],
            FigureId::Fig2 | FigureId::Fig6 | FigureId::Fig7 => &[Arm::Recontext],
            FigureId::Peers => &[Arm::Native],
        };
        if let Some(missing) = needs.iter().find(|arm| !scenario.design.arms.contains(arm)) {
            let message = format!("figure `{figure}` needs arm `{missing}`");
            let help = format!("add \"{missing}\" to [design] arms, or remove the figure");
            return at.fail(&["figures"], Some(index), &message, &help);
        }
        let no_files = scenario.bonnie.as_ref().is_some_and(|b| b.files == 0 || b.file_blocks == 0);
        if *figure == FigureId::Fig7 && no_files {
            let help = "set files = 1 and file_blocks = 1, or remove the figure";
            return at.fail(
                &["figures"],
                Some(index),
                "figure `fig7` shows file operations, and none run",
                help,
            );
        }
    }
    Ok(())
}
