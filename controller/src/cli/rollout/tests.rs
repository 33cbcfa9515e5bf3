//! What people see, as golden files, from documents made by hand; and the signatures of verdicts.

pub(crate) mod samples;

use super::{
    explain, orders, preview, show,
    verdicts::{self, Checked},
    watch::{Frame, Screen, changes},
};
use crate::{
    api::rollout_views::{
        ApprovalRequest, Explanation, NewRollout, OrderRequest, RolloutSummary, SignedVerdict, StartedRollout,
    },
    cli::{Cli, Command},
    evidence::power::GatePower,
    registry::ability::Ability,
    rollout::{AbortMode, Candidate, Event, Plan, Rollout, Seed, Span, VerdictRecord, plan_members},
    rollouts::preview as pure,
    transfer::Limits,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use clap::{CommandFactory as _, Parser as _};
use edgefleet_shared::trust::{
    SigningKey,
    envelope::{COMMAND_TYPE, VERDICT_TYPE, seal},
};
use samples::{NOW, Sample};
use std::collections::BTreeMap;

#[test]
fn every_state_reads_well() {
    for sample in samples::all() {
        let Sample { name, rollout, attempts, explanation } = &sample;
        let page = show::page(rollout, attempts.as_deref());
        let why = explain::text(rollout, explanation);
        let said = orders::said(rollout);
        insta::assert_snapshot!(format!("show_{name}"), page);
        insta::assert_snapshot!(format!("explain_{name}"), why);
        for text in [&page, &why, &said] {
            assert!(!text.contains("  - \n") && !text.ends_with(' '), "{text}");
        }
        assert!(why.lines().all(|line| line.chars().count() <= 100), "{name}: a line runs off the screen");
    }
    let list: Vec<_> = samples::all().iter().map(|sample| RolloutSummary::of(&sample.rollout)).collect();
    insta::assert_snapshot!("list", show::summaries(&list));
    assert!(show::summaries(&[]).contains("rollout plan"));
}

#[test]
fn a_watcher_reads_what_changed_and_nothing_twice() {
    let frames: Vec<_> = samples::all().iter().map(|s| Frame::of(&s.rollout, &s.explanation)).collect();
    let mut lines = Vec::new();
    let mut last = None;
    for frame in &frames {
        lines.push(format!("# {}", frame.state));
        lines.extend(changes(last, frame));
        assert_eq!(changes(Some(frame), frame), Vec::<String>::new());
        last = Some(frame);
    }
    insta::assert_snapshot!("watch_lines", lines.join("\n"));
    // Waiting for the same with other numbers is no news.
    let mut next = frames[0].clone();
    next.waiting[0] = next.waiting[0].replace("37", "38");
    assert_ne!(next, frames[0]);
    assert_eq!(changes(Some(&frames[0]), &next), Vec::<String>::new());
}

#[test]
fn the_live_view_shows_bars_and_words_and_shrinks_again() {
    let mut pictures = Vec::new();
    for sample in samples::all() {
        let page = samples::Page::default();
        let mut screen = Screen::on(page.target());
        screen.draw(&Frame::of(&sample.rollout, &sample.explanation));
        pictures.push(page.last_picture());
    }
    insta::assert_snapshot!("watch_screen", pictures.join("\n----\n"));

    let page = samples::Page::default();
    let mut screen = Screen::on(page.target());
    let [first, .., last] = &samples::all()[..] else { panic!("samples are missing") };
    screen.draw(&Frame::of(&first.rollout, &first.explanation));
    screen.draw(&Frame::of(&last.rollout, &last.explanation));
    let picture = page.last_picture();
    assert!(picture.contains("completed") && !picture.contains("delivering"), "{picture}");
}

#[test]
fn a_preview_reads_well() {
    let mut plan = samples::plan();
    plan.stages.insert(
        0,
        crate::rollout::Stage {
            devices: vec!["dev-00001".parse().unwrap(), "dev-gone".parse().unwrap()],
            soak: Span::hours(1),
            ..crate::rollout::Stage::named("lab")
        },
    );
    for (name, devices) in [("fleet", 1_200u64), ("few", 24)] {
        let ids: Vec<_> = (0..devices).map(|n| format!("dev-{n:05}").parse().unwrap()).collect();
        let sites = ["berlin", "lyon", "turin"];
        let attributes: Vec<BTreeMap<_, _>> =
            (0..devices as usize).map(|n| [("site".to_owned(), sites[n % 3].to_owned())].into()).collect();
        let candidates: Vec<_> = ids
            .iter()
            .zip(&attributes)
            .map(|(device, attributes)| Candidate { device, attributes, incumbent: None })
            .collect();
        let members = plan_members(&plan, &Seed::new([3; 32]), &candidates);
        let facts = pure::FleetFacts {
            now: NOW,
            selected: devices,
            able: Some(Ability {
                devices,
                able: devices - 4,
                lacking: [("without ONNX Runtime".to_owned(), 4)].into(),
                ..Ability::default()
            }),
            download: 8 << 20,
            links: Limits::default(),
            online: Some(devices - 2),
            bad_rate: None,
            requests_per_hour: Some(120.0),
            labels_per_hour: None,
            latency_spread: Some(0.2),
            freezes: Vec::new(),
        };
        let shown = pure::preview(&plan, &[], &members, &facts, |stage, settings| {
            let one = |gate: &crate::evidence::Gate| GatePower {
                gate: *gate,
                detection: vec![(1.5, 0.04), (2.0, 0.11), (3.0, 0.26), (5.0, 0.8)],
                false_aborts: 0.0,
                smallest_found: Some(5.0),
                hours_to_safe: (stage.hours > 12.0).then_some(11.5),
                powerless: false,
                sentence: "decides from device-hours of canaries and controls".to_owned(),
            };
            settings.gates.iter().map(one).collect()
        });
        insta::assert_snapshot!(format!("preview_{name}"), preview::text(&shown));
    }
}

#[test]
fn documents_survive_the_way_to_the_command_line() {
    for sample in samples::all() {
        let started = StartedRollout::Started { rollout: Box::new(sample.rollout.clone()) };
        let text = serde_json::to_string(&started).unwrap();
        let StartedRollout::Started { rollout } = serde_json::from_str(&text).unwrap() else {
            panic!("{text}")
        };
        assert_eq!(*rollout, sample.rollout);
        let text = serde_json::to_string(&sample.explanation).unwrap();
        assert_eq!(serde_json::from_str::<Explanation>(&text).unwrap(), sample.explanation);
        let summary = RolloutSummary::of(&sample.rollout);
        let text = serde_json::to_string(&summary).unwrap();
        assert_eq!(serde_json::from_str::<RolloutSummary>(&text).unwrap(), summary);
        assert!(text.len() < 4_096);
    }
}

#[test]
fn orders_are_what_the_machine_takes() {
    let reason = || "why".to_owned();
    for (order, json, event) in [
        (OrderRequest::Start, r#"{"order":"start"}"#, Event::Start { by: "ana".into() }),
        (
            OrderRequest::Pause { reason: reason() },
            r#"{"order":"pause","reason":"why"}"#,
            Event::Pause { by: "ana".into(), reason: reason() },
        ),
        (
            OrderRequest::Abort { mode: AbortMode::Revert, reason: reason() },
            r#"{"order":"abort","mode":"revert","reason":"why"}"#,
            Event::Abort { by: "ana".into(), reason: reason(), mode: AbortMode::Revert },
        ),
        (
            OrderRequest::Extend { span: Span::hours(1), reason: reason() },
            r#"{"order":"extend","span":3600,"reason":"why"}"#,
            Event::Extend { by: "ana".into(), reason: reason(), span: Span::hours(1) },
        ),
    ] {
        assert_eq!(serde_json::to_string(&order).unwrap(), json);
        assert_eq!(serde_json::from_str::<OrderRequest>(json).unwrap(), order);
        assert_eq!(order.event("ana"), event);
    }
    for bad in
        [r#"{"order":"stop"}"#, r#"{"order":"pause"}"#, r#"{"order":"abort","mode":"burn","reason":"x"}"#]
    {
        assert!(serde_json::from_str::<OrderRequest>(bad).is_err(), "{bad}");
    }
    let no = ApprovalRequest { agree: false, reason: reason() };
    assert_eq!(no.event("bo"), Event::Deny { by: "bo".into(), reason: reason() });
}

fn signed(record: &VerdictRecord, key: &SigningKey) -> SignedVerdict {
    let envelope = BASE64.encode(seal(VERDICT_TYPE, record, &[key]));
    SignedVerdict { record: record.clone(), envelope, key: key.public().id() }
}

#[test]
fn only_what_the_given_key_signed_counts_as_decided() {
    let key = || SigningKey::from_pkcs8(&SigningKey::generate_pkcs8().unwrap()).unwrap();
    let (ours, other) = (key(), key());
    let [_, failed, ..] = &samples::all()[..] else { panic!("samples are missing") };
    let record = failed.explanation.verdicts.last().unwrap();
    let good = signed(record, &ours);
    assert_eq!(verdicts::verify(&good, &[other.public(), ours.public()]), Ok(()));

    let mut altered = good.clone();
    altered.record.decision = crate::rollout::Decision::StagePassed;
    let mut cut = good.clone();
    cut.envelope.truncate(40);
    let mut kind = good.clone();
    kind.envelope = BASE64.encode(seal(COMMAND_TYPE, record, &[&ours]));
    for (bad, said) in [
        (&signed(record, &other), "no signature by the given key"),
        (&altered, "not the one that was signed"),
        (&cut, "base64"),
        (&kind, "something else"),
    ] {
        let reason = verdicts::verify(bad, &[ours.public()]).unwrap_err();
        assert!(reason.contains(said) || said == "base64", "{reason}");
    }

    // Keys are random: the golden file has the columns, not the key.
    let stable = |signed: &SignedVerdict, signature: Option<&str>| Checked {
        signed: SignedVerdict {
            key: serde_json::from_str(r#""0123456789abcdef""#).unwrap(),
            ..signed.clone()
        },
        signature: signature.map(str::to_owned),
    };
    let all: Vec<_> =
        failed.explanation.verdicts.iter().map(|v| stable(&signed(v, &ours), Some("good"))).collect();
    insta::assert_snapshot!("verdicts", verdicts::text(&all));
    assert!(verdicts::text(&[]).contains("nothing"));
}

#[tokio::test]
async fn saved_verdicts_are_checked_without_a_controller() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8().unwrap()).unwrap();
    let mut all: Vec<_> =
        samples::all()[1].explanation.verdicts.iter().map(|record| signed(record, &key)).collect();
    crate::signing::key_file::write_public(dir.path().join("c.pub").as_path(), &key.public(), "controller")
        .unwrap();
    let check = async |all: &[SignedVerdict]| {
        std::fs::write(dir.path().join("v.json"), serde_json::to_vec(all).unwrap()).unwrap();
        let (file, key) = (at("v.json"), at("c.pub"));
        let args = ["edgefleet", "rollout", "verdicts", "--file", &file, "--verify", "--key", &key];
        crate::cli::run(Cli::try_parse_from(args).unwrap().command).await.map_err(|e| e.to_string())
    };
    assert_eq!(check(&all).await, Ok(()));
    all[0].record.time_scale = 7.0;
    assert!(check(&all).await.unwrap_err().contains("1 of"));
}

#[test]
fn an_assignment_is_a_plan_of_one_stage() {
    let args = [
        "edgefleet",
        "assign",
        "digits@2",
        "--select",
        "site=lab",
        "--supersede",
        "--yes",
        "--probation",
        "5s",
    ];
    let Command::Assign(call) = Cli::try_parse_from(args).unwrap().command else {
        panic!("not an assignment")
    };
    let NewRollout { plan, confirmed, dry_run, start, .. } = call.args.request();
    assert!(confirmed && !dry_run && start);
    assert_eq!((plan.stages.len(), plan.probation), (1, Span::secs(5)));
    assert_eq!(plan.rollout.slot.as_str(), "digits");
    assert_eq!(plan.select[0].to_string(), "site=lab");
    assert_eq!(plan.rollout.on_overlap, crate::rollout::plan::OnOverlap::Supersede);
}

#[test]
fn the_grammar_of_rollouts_is_sound() {
    for (args, good) in [
        (&["start", "plan.yaml", "--set", "limits.concurrency=5%", "--yes"][..], true),
        (&["start", "plan.yaml", "--set", "limits"], false),
        (&["start", "plan.yaml", "--hold", "--dry-run"], false),
        (&["abort", "r-1"], false),
        (&["abort", "r-1", "--mode", "halt", "--reason", "x"], true),
        (&["extend", "r-1", "--by", "24h", "--reason", "x"], true),
        (&["extend", "r-1", "--by", "0s", "--reason", "x"], false),
        (&["watch", "r-1", "--every", "1ms"], false),
        (&["verdicts", "r-1", "--verify"], false),
        (&["verdicts"], false),
        (&["verdicts", "--file", "v.json", "--verify", "--key", "k.pub"], true),
    ] {
        let all = [&["edgefleet", "rollout"], args].concat();
        assert_eq!(Cli::try_parse_from(&all).is_ok(), good, "{args:?}");
    }
}

#[test]
fn help_is_as_it_was_agreed() {
    let mut text = String::new();
    let mut cli = Cli::command();
    cli.build();
    let rollout = cli.find_subcommand_mut("rollout").unwrap();
    text += &rollout.render_help().to_string();
    for command in rollout.get_subcommands_mut().filter(|command| command.get_name() != "help") {
        let help = command.render_help();
        text += &format!("\n==== {}\n{help}", command.get_name());
    }
    insta::assert_snapshot!("help", text);
}

/// The plan in the manual is the default plan, with everything in it.
#[test]
fn the_example_plan_has_every_field_with_its_default() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/rollout.yaml");
    let plan: Plan = crate::cli::plan_file::read(&path).unwrap();
    let wanted = Plan::new("digits".parse().unwrap(), "digits@2".parse().unwrap());
    assert_eq!(plan, wanted);
    let written: serde_json::Value = crate::cli::plan_file::read(&path).unwrap();
    let whole = serde_json::to_value(&wanted).unwrap();
    let mut missing = Vec::new();
    absent("", &whole, &written, &mut missing);
    // Derived from the stages when a rollout is made, whatever a file says.
    missing.retain(|path| path != "gates.gates" && path != "gates.planned");
    assert_eq!(missing, Vec::<String>::new(), "fields the example does not show");
    // What is absent by default stands there as a comment that parses once it is taken in.
    let text = std::fs::read_to_string(&path).unwrap();
    let optional: String = text
        .lines()
        .map(|line| match line.trim_start().strip_prefix("#: ") {
            Some(rest) => format!("{}{rest}\n", &line[..line.len() - line.trim_start().len()]),
            None => format!("{line}\n"),
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let all = dir.path().join("all.yaml");
    std::fs::write(&all, &optional).unwrap();
    let all: Plan = crate::cli::plan_file::read(&all).unwrap();
    assert!(all.window.is_some() && all.start_at.is_some() && all.limits.bytes_per_day.is_some());
    assert!(all.override_freeze.is_some() && all.rollout.allow_downgrade.is_some());
    assert!(all.assign.max_devices.is_some() && all.stages[1].coverage.is_some());
}

/// Paths that `whole` has and `written` has not.
fn absent(at: &str, whole: &serde_json::Value, written: &serde_json::Value, missing: &mut Vec<String>) {
    let serde_json::Value::Object(fields) = whole else { return };
    for (key, value) in fields {
        match written.get(key) {
            Some(found) => absent(&format!("{at}{key}."), value, found, missing),
            // A list whose default is empty may be left out where it hides in another list.
            None => missing.push(format!("{at}{key}")),
        }
    }
}

#[test]
fn hostile_texts_do_not_reach_the_terminal() {
    let mut rollout: Rollout = samples::all()[0].rollout.clone();
    rollout.reason = "\x1b[2J\x07".repeat(50);
    let text = show::page(&rollout, None);
    // `Context::print` takes them out; the views hand on what they were given and cut no character in two.
    assert!(text.contains("\x1b[2J"));
    let frame = Frame { saying: "\x1b[2Jx".into(), ..Frame::of(&rollout, &samples::all()[0].explanation) };
    let page = samples::Page::default();
    Screen::on(page.target()).draw(&frame);
    assert!(!page.last_picture().contains("\x1b[2J"));
}
