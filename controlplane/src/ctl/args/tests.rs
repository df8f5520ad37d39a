//! Words that are understood, and words that are refused.

use clap::CommandFactory;

use super::*;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_has_a_variable_and_one_rule_names_them() {
    let command = sluice_flags::with_variables(Cli::command(), VARIABLES);
    let broken = sluice_flags::broken_rules(&command, VARIABLES);
    // The folder is a setting of the control plane, whose variable it has.
    let expected = "restore --data-dir: SLUICE_CONTROL_DATA_DIR, not SLUICE_RESTORE_DATA_DIR";
    assert_eq!(broken, [expected]);
}

#[test]
fn what_a_variable_says_is_heard_after_the_flag() {
    let command = sluice_flags::with_variables(Cli::command(), VARIABLES);
    let form = command.get_arguments().find(|arg| arg.get_id() == "form");
    let form = form.and_then(clap::Arg::get_env);
    assert_eq!(form, Some("SLUICE_OUTPUT".as_ref()));
    let status = command.find_subcommand("status").expect("the command");
    let nearer = status.get_arguments().find(|arg| arg.get_id() == "form");
    let nearer = nearer.expect("the flag").get_env();
    assert_eq!(
        nearer, None,
        "it would go before `sluicectl --output text status`"
    );
}

#[test]
fn the_help_names_the_default_address() {
    let expected = format!("http://127.0.0.1:{}", crate::domain::PORT);
    assert_eq!(SERVER_DEFAULT, expected);
    let help = Cli::command().render_help().to_string();
    assert!(help.contains(SERVER_DEFAULT), "{help}");
}

#[test]
fn durations_name_their_unit() {
    let day = 86_400;
    for (text, expected) in [
        ("500ms", Some(Duration::from_millis(500))),
        ("0s", Some(Duration::ZERO)),
        ("30s", Some(Duration::from_secs(30))),
        ("5m", Some(Duration::from_secs(300))),
        ("2h", Some(Duration::from_secs(7200))),
        ("7d", Some(Duration::from_secs(7 * day))),
        ("36500d", Some(Duration::from_secs(36_500 * day))),
        ("36501d", None),
        ("18446744073709551615d", None),
        ("30", None),
        ("", None),
        ("s", None),
        ("-1s", None),
        ("1.5s", None),
        ("1 s", None),
    ] {
        assert_eq!(duration(text).ok(), expected, "{text:?}");
    }
    assert!(lifetime("0s").is_err() && lifetime("1500ms").is_err() && lifetime("1s").is_ok());
}

#[test]
fn the_form_may_stand_before_or_after_the_command() {
    for (words, expected) in [
        (&["x", "status"][..], Form::Text),
        (&["x", "status", "--output", "json"], Form::Json),
        (&["x", "--output", "json", "status"], Form::Json),
        (
            &["x", "--output", "json", "status", "--output", "text"],
            Form::Text,
        ),
        (
            &["x", "token", "join", "list", "--output", "json"],
            Form::Json,
        ),
        (
            &["x", "--output", "json", "backup", "--output", "b.db"],
            Form::Json,
        ),
    ] {
        let cli = Cli::try_parse_from(words).expect("good arguments");
        assert_eq!(cli.form(), expected, "{words:?}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused() {
    for words in [
        &["x"][..],
        &["x", "apply"],
        &["x", "apply", "-f", "p", "--timeout", "5s"],
        &["x", "release"],
        &["x", "release", "0"],
        &["x", "release", "7", "--node", "a"],
        &["x", "diff"],
        &["x", "diff", "-f", "p", "7"],
        &["x", "diff", "1", "2", "3"],
        &["x", "diff", "1", "--from", "2"],
        &["x", "kick"],
        &["x", "kick", "--client-id", "a", "--user", "b"],
        &["x", "drain", "n", "--undo", "--within", "1s"],
        &["x", "explain", "publish"],
        &["x", "explain", "--qos", "3", "publish", "t"],
        &["x", "token", "create", "a", "--role", "admin"],
        &["x", "token", "create", "a", "--role", "root", "--print"],
        &[
            "x",
            "token",
            "create",
            "a",
            "--role",
            "admin",
            "--print",
            "--output-file",
            "f",
        ],
        &["x", "token", "join", "create", "--uses", "0", "--print"],
        &["x", "--token", "slc_secret", "status"],
        &["x", "--cert", "c", "status"],
        &["x", "status", "--output", "yaml"],
    ] {
        assert!(Cli::try_parse_from(words).is_err(), "{words:?}");
    }
}
