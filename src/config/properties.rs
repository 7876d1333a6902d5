//! What holds of every configuration: it is one, or problems that each name a place, and no secret is shown.

use std::io::Write as _;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;

use super::*;

/// Stands in every secret, and nowhere else.
const PLANTED: &str = "planted";

/// Keys of the file that hold secrets: the settings' own, and those of an account.
const SECRETS: [&str; 5] =
    ["page_token_key", "api_secret", "client_secret", "auth_token", "secondary_auth_token"];

/// JSON's texts are TOML's, too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}")),
        any::<bool>().prop_map(|is_on| is_on.to_string()),
        "[ -~é]{0,20}".prop_map(|text| quoted(&text)),
        "[0-9]{1,6}(ms|s|m|h|d)".prop_map(|text| quoted(&text)),
        select(vec!["[]", "{}", "[{}]", "\"127.0.0.1:0\"", "\"https://example.com/\"", "1979-05-27", "\"\""])
            .prop_map(Into::into),
    ]
}

fn secret() -> impl Strategy<Value = String> {
    "[ -~]{0,6}".prop_map(|text| quoted(&format!("{PLANTED}-{text}")))
}

fn line() -> impl Strategy<Value = String> {
    let plain: Vec<&str> =
        SETTINGS.iter().filter(|setting| !setting.is_secret).map(|setting| setting.key).collect();
    let accounts = vec!["account_sid", "api_key", "client_id", "url", "v1_url", "edge", "region", "nonsense"];
    prop_oneof![
        4 => (select(plain), value()).prop_map(|(key, value)| format!("{key} = {value}")),
        2 => (select(accounts), value()).prop_map(|(key, value)| format!("{key} = {value}")),
        2 => (select(SECRETS.to_vec()), secret()).prop_map(|(key, value)| format!("{key} = {value}")),
        1 => select(vec!["[[accounts]]", "[cache]", "[accounts]", "[limits]"]).prop_map(Into::into),
        // What is no TOML, with a secret in it.
        1 => (select(SECRETS.to_vec()), secret()).prop_map(|(key, value)| format!("{key} = {value} {value}")),
    ]
}

fn any_file() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => vec(line(), 0..12).prop_map(|lines| lines.join("\n").into_bytes()),
        1 => vec(any::<u8>(), 0..60),
    ]
}

fn check(report: &Report) -> Result<(), TestCaseError> {
    for line in &report.lines {
        prop_assert!(!line.contains(PLANTED), "{}", line);
    }
    match &report.outcome {
        Ok(config) => {
            let shown = format!("{config:?}");
            prop_assert!(!shown.contains(PLANTED));
        }
        Err(problems) => {
            prop_assert!(!problems.is_empty());
            for problem in problems {
                let problem = problem.to_string();
                prop_assert!(!problem.starts_with(':') && !problem.contains(PLANTED), "{}", problem);
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_file_is_a_configuration_or_problems_and_shows_no_secret(file in any_file()) {
        let mut path = tempfile::NamedTempFile::new().unwrap();
        path.write_all(&file).unwrap();
        let flags = Flags { config: Some(path.path().to_owned()), ..Flags::default() };
        check(&load(flags, &|_| None))?;
    }

    #[test]
    fn any_environment_is_a_configuration_or_problems_and_shows_no_secret(
        values in vec((any::<prop::sample::Index>(), "[ -~é]{0,20}"), 0..8), secret in "[ -~]{0,20}",
    ) {
        let plain: Vec<_> = SETTINGS.iter().filter(|setting| !setting.is_secret).collect();
        let secret = format!("{PLANTED}-{secret}");
        let set: BTreeMap<&str, &str> =
            values.iter().map(|(at, text)| (plain[at.index(plain.len())].env, text.as_str())).collect();
        let env = |name: &str| {
            let secrets = ["TWILIO_AUTH_TOKEN", "GATEWAY_PAGE_TOKEN_KEY"];
            let sid = (name == "TWILIO_ACCOUNT_SID").then(|| format!("AC{}", "0".repeat(32)));
            let secret = secrets.contains(&name).then(|| secret.clone());
            sid.or(secret).or_else(|| set.get(name).map(|text| (*text).to_owned()))
        };
        check(&load(Flags::default(), &env))?;
    }
}
