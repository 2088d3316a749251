//! What comes of scenarios: names, loops, orders, and that no text ends the program.

use proptest::prelude::*;

use super::refused::{WHOLE, compiled, otherwise};
use crate::model::Plan;

fn plan(text: &str) -> Plan {
    compiled(text).unwrap_or_else(|error| panic!("{}", error.render()))
}

#[test]
fn points_of_a_matrix_name_themselves_and_have_numbers() {
    let plan = plan(&format!("{WHOLE}\n[matrix]\nsize = [64, 128]\n\"guest.vm.memory\" = [\"256 MiB\"]\n"));
    let names: Vec<_> = plan.arms.iter().map(|arm| arm.name.as_str()).collect();
    assert_eq!(names[0], "plain, size = 64, memory = 256 MiB");
    assert_eq!(names.len(), 4);
    let memory = &plan.arms[0].factors["guest.vm.memory"];
    assert_eq!((memory.number, memory.unit.as_str()), (Some(256.0), "MiB"));
    assert_eq!(plan.arms[1].workloads[0].command, "echo x 128");
}

#[test]
fn steps_of_one_verb_and_of_a_loop_are_told_apart() {
    let twice = format!("{WHOLE}\n[[step]]\nwait = \"life\"\n[[step]]\nwait = \"life\"\n");
    let names: Vec<_> = plan(&twice).arms[1].program.iter().map(|step| step.name.clone()).collect();
    assert_eq!(names, ["shape", "home", "move", "wait", "wait-2", "wait-3"]);
    let each = format!(
        "{WHOLE}\n[[step]]\nname = \"rest\"\nfor = \"h in hosts\"\ncommand = \"echo ${{h}}\"\non = \"${{h}}\"\n"
    );
    let plan = plan(&each);
    let last = &plan.arms[0].program[3..];
    assert_eq!(last.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["rest-a", "rest-b"]);
    assert_eq!(last[1].arguments["command"], "echo b");
}

/// The order of the runs that are stored: it may never change.
#[test]
fn the_paper_s_seed_gives_the_order_of_the_old_bench() {
    let text = otherwise("blocks = 2\nseed = 1", "blocks = 5\nwarmup = 1\nseed = 20150417");
    let order: Vec<_> = plan(&text).trials.iter().map(|t| format!("{}{}", t.block, &t.arm[..1])).collect();
    assert_eq!(order.join(" "), "0p 0r 1r 1p 2r 2p 3r 3p 4p 4r 5r 5p");
}

/// Parameters that double each other give no text and no list without an end.
#[test]
fn parameters_do_not_explode() {
    for (open, close) in [("\"", "\""), ("[\"", "\"]")] {
        let join = if open == "\"" { "" } else { "\", \"" };
        let mut chain = format!("p0 = {open}x{close}\n");
        for number in 1..26 {
            let before = format!("${{p{}}}", number - 1);
            chain.extend([format!("p{number} = {open}{before}{join}{before}{close}\n")]);
        }
        assert!(compiled(&otherwise("size = 4\n", &format!("size = 4\n{chain}"))).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_text_ends_the_program(text in "\\PC{0,200}") {
        let _ = compiled(&text);
    }

    /// A scenario with a piece cut out, doubled or replaced is taken or refused, and nothing else.
    #[test]
    fn no_damaged_scenario_ends_the_program(
        from in 0..WHOLE.len(),
        length in 0_usize..60,
        what in prop_oneof![Just(String::new()), Just("${".to_owned()), Just("'''".to_owned()), Just("[[step]]\n".to_owned()), "[\\[\\]{}=\"$.,a-z0-9é \n-]{0,12}"],
    ) {
        let to = (from + length).min(WHOLE.len());
        let text = format!("{}{what}{}", &WHOLE[..from], &WHOLE[to..]);
        if let Err(error) = compiled(&text) {
            prop_assert!(!error.render().is_empty());
        }
    }
}
