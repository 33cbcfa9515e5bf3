//! `edgefleet settings`: how devices behave, apart from what they serve.

use super::{context::Context, failure::Failure, table};
use crate::{
    api::settings::RuleBody,
    clock,
    settings::{Rule, usual_order},
};
use clap::{Args, Subcommand};
use edgefleet_shared::{desired::Settings, ids::DeviceId, selector::Selector};
use serde_json::{Map, Value};
use std::{str::FromStr, time::Duration};

#[derive(Debug, Subcommand)]
pub enum SettingsCommand {
    /// List all rules, in the order in which they apply
    List,
    Set(SetArgs),
    /// Take a rule away
    Remove {
        name: String,
    },
    /// Show what all rules come to on one device
    Show {
        device: DeviceId,
    },
}

/// Write a rule for the fleet or a part of it, in place of one of the same name.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet settings set fleet window_secs=60
  edgefleet settings set plant-7 --select site=plant-7 profile_secs=600 transport=mqtt
  edgefleet settings set look --select site=plant-7 --for 12h window_secs=10
  edgefleet settings set ships --select link=satellite telemetry.bytes_per_day=60000 telemetry.metered=essential

Settings: window_secs, profile_secs, heartbeat_secs, transport (auto, mqtt, https), https_above_bytes, block_bytes,
telemetry.bytes_per_day, telemetry.hold_secs, telemetry.metered (send, essential);
docs/operating.md has all of them. Values are JSON; what is no JSON is taken as text.")]
pub struct SetArgs {
    /// The rule's name: lower-case letters, digits and `-`
    name: String,
    #[arg(required = true, value_name = "FIELD=VALUE")]
    set: Vec<Setting>,
    /// Only these devices, by labels and id [default: the whole fleet]
    #[arg(long)]
    select: Option<Selector>,
    /// Rules apply in ascending order, then by name; a later one wins
    #[arg(long, default_value_t = usual_order())]
    order: u32,
    /// The rule ends by itself after this time, as in `90m`, `12h`, `7d` [default: never]
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    lasts: Option<Duration>,
}

/// `FIELD=VALUE`; `a.b=1` sets a field of a field.
#[derive(Clone, Debug)]
struct Setting {
    path: Vec<String>,
    value: Value,
}

impl FromStr for Setting {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (path, value) = text.split_once('=').ok_or("write it as FIELD=VALUE, as in window_secs=60")?;
        let path: Vec<_> = path.split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err("the field's name is missing".to_owned());
        }
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        Ok(Self { path, value })
    }
}

impl Setting {
    fn write(self, into: &mut Map<String, Value>) {
        let Self { path, value } = self;
        let Some((last, parents)) = path.split_last() else { return };
        let mut at = into;
        for parent in parents {
            let entry = at.entry(parent.clone()).or_insert_with(|| Value::Object(Map::new()));
            if !entry.is_object() {
                *entry = Value::Object(Map::new());
            }
            let Value::Object(inner) = entry else { return };
            at = inner;
        }
        at.insert(last.clone(), value);
    }
}

impl SettingsCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        match self {
            Self::List => {
                let all: Vec<Rule> = client.get("/api/v1/settings").await?;
                context.print(&all, |all| list(all))
            }
            Self::Set(SetArgs { name, set, select, order, lasts }) => {
                let mut fields = Map::new();
                set.into_iter().for_each(|one| one.write(&mut fields));
                let until = lasts.map(|lasts| clock::now() + lasts);
                let body = RuleBody { order, select, set: fields, until };
                let rule: Rule = client.put(&format!("/api/v1/settings/{name}"), &body).await?;
                context
                    .print(&rule, |rule| format!("rule {} holds for {}{}", rule.name, whom(rule), ends(rule)))
            }
            Self::Remove { name } => {
                let rule: Rule = client.delete(&format!("/api/v1/settings/{name}")).await?;
                context.print(&rule, |rule| format!("rule {} does not hold any more", rule.name))
            }
            Self::Show { device } => {
                let settings: Settings = client.get(&format!("/api/v1/devices/{device}/settings")).await?;
                context.print(&settings, show)
            }
        }
    }
}

fn whom(rule: &Rule) -> String {
    rule.select.as_ref().map_or_else(|| "the whole fleet".to_owned(), ToString::to_string)
}

fn ends(rule: &Rule) -> String {
    rule.until.map_or_else(String::new, |until| format!(" until {until}"))
}

fn list(all: &[Rule]) -> String {
    if all.is_empty() {
        return "no rules: every device has the default settings".to_owned();
    }
    let rows = all.iter().map(|rule| {
        let set: Vec<_> = rule.set.iter().map(|(field, value)| format!("{field}={value}")).collect();
        let by = format!("{} {}", rule.by, rule.at);
        let until = rule.until.map_or_else(|| "-".to_owned(), |until| until.to_string());
        vec![rule.name.clone(), rule.order.to_string(), whom(rule), set.join(" "), until, by]
    });
    table::of(&["RULE", "ORDER", "DEVICES", "SETS", "UNTIL", "BY"], rows)
}

fn show(settings: &Settings) -> String {
    let Ok(Value::Object(all)) = serde_json::to_value(settings) else { return String::new() };
    let rows = all.into_iter().map(|(field, value)| vec![field, value.to_string()]);
    table::of(&["SETTING", "VALUE"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_json_where_they_can_be_and_reach_into_others() {
        let mut all = Map::new();
        for text in
            ["window_secs=60", "transport=mqtt", "capture.digits.random=0.01", "capture.digits.on=true"]
        {
            text.parse::<Setting>().unwrap().write(&mut all);
        }
        let wanted = json!({"window_secs": 60, "transport": "mqtt", "capture": {"digits": {"random": 0.01, "on": true}}});
        assert_eq!(Value::Object(all), wanted);
        for odd in ["window_secs", "=5", "a..b=1"] {
            assert!(odd.parse::<Setting>().is_err(), "{odd}");
        }
    }
}
