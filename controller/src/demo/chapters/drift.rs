//! One hall's pictures lose their focus: the drift is seen, the estimate falls before anybody has labelled anything,
//! advice says what to do, and labels of what was captured say how bad it is.

use crate::{
    clock,
    demo::{
        DemoError,
        console::Console,
        stage::{Stage, text},
        tale::{FLEET_LIMIT, Tale},
    },
};
use edgefleet_shared::time::Timestamp;
use serde_json::Value;

/// Devices of the hall that loses its focus: as many as a verdict about a cohort needs.
const SOUTH: usize = 3;
/// Profiles every device sends before: what is usual has to be known.
const BEFORE: u64 = 8;
/// Labels that are given at the end.
const LABELS: usize = 60;

pub(super) async fn tell(tale: &mut Tale<'_>) -> Result<(), DemoError> {
    let devices = tale.stage.agents.len();
    if devices <= SOUTH {
        tale.console.say(&format!(
            "   {devices} devices are too few to tell a hall from its fleet: {} do",
            SOUTH + 1
        ));
        return Ok(());
    }
    let bundle = tale.released.last().cloned().unwrap_or_default();
    prepare(tale).await?;
    let (stage, console) = (&tale.stage, &mut *tale.console);
    let quiet = settled(stage, console, &bundle).await?;
    tale.report.check("nothing drifts while pictures are as they were", quiet.is_empty(), quiet.join("; "));

    let began = clock::now();
    for agent in stage.agents.iter().rev().take(SOUTH) {
        if let Some(load) = &agent.load {
            load.blur(true);
        }
    }
    console.say(&format!("   the {SOUTH} devices in hall=south lose their focus; nobody labels anything"));
    let (incident, others) = incident(stage, console, &bundle).await?;
    let key = &incident["incident"]["key"];
    let worst = &incident["incident"]["channels"][0];
    console.say(&format!(
        "   incident {}: {} in {}, worst {} (Jensen-Shannon distance {:.2})",
        text(&incident["id"]),
        text(&key["cause"]),
        text(&key["cohort"]),
        text(&worst["id"]),
        worst["js"].as_f64().unwrap_or(0.0)
    ));
    let right = key["cohort"] == "hall=south" && key["cause"] == "population" && others == 0;
    tale.report.check("one incident, of the one hall", right, key.to_string());

    let advice = advice(stage, console, &bundle).await?;
    let finding = &advice["tracked"]["finding"];
    let estimate = finding["numbers"]["estimate"].as_f64().unwrap_or(1.0);
    let fallen = finding["numbers"]["fallen"].as_f64().unwrap_or(0.0);
    console.say(&format!("   advice A03: {}", text(&finding["text"]["what"])));
    console.say(&format!("      {}", text(&finding["text"]["to_do"])));
    tale.report.check(
        "the estimated accuracy falls before any label",
        fallen > 0.03,
        format!("{:.1} % after {:.1} %", 100.0 * estimate, 100.0 * (estimate + fallen)),
    );
    audit(tale, &bundle, began, estimate).await?;
    for agent in &tale.stage.agents {
        if let Some(load) = &agent.load {
            load.blur(false);
        }
    }
    Ok(())
}

/// Halls, short profiles, and a policy for what is captured.
async fn prepare(tale: &mut Tale<'_>) -> Result<(), DemoError> {
    let Tale { stage, console, .. } = tale;
    for (number, agent) in stage.agents.iter().rev().enumerate() {
        if let Some(load) = &agent.load {
            load.show_everything();
        }
        let hall = if number < SOUTH { "hall=south" } else { "hall=north" };
        stage.command(&["device", "label", &agent.id, hall]).await?;
    }
    stage.command(&["monitor", "cohorts", "digits", "--by", "hall"]).await?;
    stage.command(&["settings", "set", "demo", "profile_secs=2"]).await?;
    stage.command(&["capture", "policy", "set", "digits", "--random", "0.05", "--low-margin", "0.2"]).await?;
    console
        .say("   cohorts by hall, a profile every 2 s, 5 % of all inputs and those near a tie are captured");
    Ok(())
}

/// Waits until enough is known of both halls. Returns what drifts nevertheless.
async fn settled(stage: &Stage, console: &mut Console, bundle: &str) -> Result<Vec<String>, DemoError> {
    let monitor = |hall: &str| monitor_path(bundle, hall);
    stage
        .wait_for(
            "profiles of both halls",
            FLEET_LIMIT,
            async |stage| console.refresh(stage).await,
            async |stage| {
                let mut least = u64::MAX;
                for (hall, devices) in [("north", stage.agents.len() - SOUTH), ("south", SOUTH)] {
                    let found = stage.get(&monitor(hall)).await?;
                    let profiles = found["profile"]["profiles"].as_u64().unwrap_or(0);
                    least = least.min(profiles / devices.max(1) as u64);
                }
                Ok(if least >= BEFORE { Ok(()) } else { Err(format!("{least} of {BEFORE} each")) })
            },
        )
        .await?;
    let open = stage.get(&format!("/api/v1/incidents?bundle={}", bundle.replace('@', "%40"))).await?;
    let all = open.as_array().cloned().unwrap_or_default();
    Ok(all.iter().map(|one| one["incident"]["key"].to_string()).collect())
}

fn monitor_path(bundle: &str, hall: &str) -> String {
    let (model, counter) = bundle.split_once('@').unwrap_or((bundle, "1"));
    format!("/api/v1/models/{model}/bundles/{counter}/monitor?cohort=hall%3D{hall}")
}

/// The incident of a whole cohort, and how many others there are.
async fn incident(stage: &Stage, console: &mut Console, bundle: &str) -> Result<(Value, usize), DemoError> {
    let path = format!("/api/v1/incidents?bundle={}", bundle.replace('@', "%40"));
    stage
        .wait_for(
            "an incident of the hall",
            FLEET_LIMIT,
            async |stage| console.refresh(stage).await,
            async |stage| {
                let all = stage.get(&path).await?;
                let all = all.as_array().cloned().unwrap_or_default();
                let population = all.iter().find(|one| one["incident"]["key"]["cause"] == "population");
                let others = all.len().saturating_sub(1);
                Ok(population
                    .cloned()
                    .map(|one| (one, others))
                    .ok_or_else(|| format!("{} incidents", all.len())))
            },
        )
        .await
}

async fn advice(stage: &Stage, console: &mut Console, bundle: &str) -> Result<Value, DemoError> {
    let path = format!("/api/v1/advice?bundle={}", bundle.replace('@', "%40"));
    stage
        .wait_for(
            "advice about the hall",
            FLEET_LIMIT,
            async |stage| console.refresh(stage).await,
            async |stage| {
                let all = stage.get(&path).await?;
                let all = all.as_array().cloned().unwrap_or_default();
                let rules: Vec<_> = all.iter().map(|one| text(&one["tracked"]["finding"]["rule"])).collect();
                let found = all.iter().find(|one| one["tracked"]["finding"]["rule"] == "A03");
                Ok(found.cloned().ok_or_else(|| format!("rules that speak: {}", rules.join(", "))))
            },
        )
        .await
}

/// Labels what the hall's devices captured by what the pictures truly show, and compares.
async fn audit(tale: &mut Tale<'_>, bundle: &str, began: Timestamp, estimate: f64) -> Result<(), DemoError> {
    let since = began.to_string();
    let mut labelled = 0;
    let mut sums = (0.0, 0.0);
    for agent in tale.stage.agents.iter().rev().take(SOUTH) {
        let most = (LABELS / SOUTH).to_string();
        let filter = ["--bundle", bundle, "--device", agent.id.as_str(), "--since", since.as_str()];
        let mut args = vec!["capture", "list", "--state", "unlabelled", "--limit", most.as_str()];
        args.extend(filter);
        let list = tale.stage.command(&args).await?;
        let all = list.as_array().or_else(|| list["items"].as_array()).cloned().unwrap_or_default();
        for capture in &all {
            let prediction = text(&capture["document"]["prediction"]);
            let truth = agent.load.as_ref().and_then(|load| load.truth(&prediction));
            let Some(truth) = truth else { continue };
            let digest = text(&capture["digest"]);
            tale.stage.command(&["capture", "label", &digest, &truth.to_string()]).await?;
            labelled += 1;
        }
        let mut args = vec!["capture", "audit", "digits"];
        args.extend(filter);
        let audited = tale.stage.command(&args).await?;
        let (accuracy, n) =
            (audited["combined"]["accuracy"].as_f64(), audited["combined"]["effective_n"].as_f64());
        if let (Some(accuracy), Some(n)) = (accuracy, n) {
            sums = (sums.0 + accuracy * n, sums.1 + n);
        }
    }
    let audited = if sums.1 > 0.0 { sums.0 / sums.1 } else { f64::NAN };
    let detail =
        format!("{labelled} labels: {:.1} % audited, {:.1} % estimated", 100.0 * audited, 100.0 * estimate);
    tale.console.say(&format!("   {detail}"));
    tale.report.check(
        "captures wait to be labelled, and say how bad it is",
        labelled > 0 && audited.is_finite(),
        detail,
    );
    Ok(())
}
