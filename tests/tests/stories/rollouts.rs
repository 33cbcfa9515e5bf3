//! A staged rollout to thirty real agents, four of them in trouble, and a controller that is killed meanwhile.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    agent::Agent,
    controller::Controller,
    fleet::Fleet,
    inference::answers,
    models,
    place::Place,
    plans::{open_in_utc, staged},
    proxy::Proxy,
    waiting::{PATIENCE, until},
};
use futures::future::try_join_all;
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

const AGENTS: usize = 30;
/// How many are brought in at a time.
const AT_A_TIME: usize = 6;
/// For everything thirty agents do on two cores.
const LONG: Duration = Duration::from_secs(90);
const KIB: u64 = 1 << 10;
/// Big enough that a throttled line can be cut while it travels.
const BIG: usize = 768 * KIB as usize;

/// Who is in trouble, by place among the agents.
const AWAY: usize = 29;
const CRASHES: usize = 28;
const CUT: usize = 27;
/// Twelve hours from the others: where it is, the maintenance window is closed.
const FAR: usize = 26;

mod alone {
    use super::*;

    #[tokio::test]
    async fn thirty_agents_four_of_them_in_trouble_and_a_killed_controller() -> Result<()> {
        let place = Place::new()?;
        let Fleet { mut controller, mut agents } = thirty(&place).await?;
        let line = behind_a_proxy(&controller, &mut agents[CUT]).await?;
        move_to(&mut agents[FAR], "XXX-12").await?;
        for at in [CUT, FAR] {
            controller.sees(&agents[at].id, true).await?;
        }
        agents[AWAY].kill();
        controller.sees(&agents[AWAY].id, false).await?;
        let source = models::copy_as(&place, &models::digits(2), 2)?;
        models::pad(&source, BIG, 3)?;
        models::publish(&place, &controller, &source).await?;
        line.throttle(256 * KIB);

        let mut plan = staged("digits@2", &[&agents[0].id, &agents[1].id]);
        plan["window"] = open_in_utc();
        plan["probation"] = 5.into();
        let rollout = start(&place, &controller, &plan).await?;

        // The one whose line is cut and the one that crashes have their trouble when their turn comes.
        let mut crashing = agents.remove(CRASHES);
        let cutting = agents.remove(CUT);
        let told = tell(&mut controller, &rollout, [&agents[0].id, &agents[1].id]);
        tokio::try_join!(told, crash_again_and_again(&mut crashing), cut_underway(&cutting, &line))?;
        agents.insert(CUT, cutting);
        agents.insert(CRASHES, crashing);

        // Each of the four is reported for what it is, and nobody else has a scratch.
        // Completed does not wait for the last few of them.
        until("everybody came to where it stays", LONG, async || {
            let ends = attempts(&controller, &rollout).await?;
            agents.iter().enumerate().try_for_each(|(at, agent)| {
                as_it_should_end(at, ends.get(&agent.id).context("everybody has an attempt")?)
            })
        })
        .await?;
        for (at, agent) in agents.iter().enumerate() {
            match at {
                AWAY => {}
                CRASHES | FAR => drop(answers(&agent.base, "digits@1").await?),
                _ => drop(answers(&agent.base, "digits@2").await?),
            }
        }
        let explained = controller.table(&["rollout", "show", &rollout]).await?;
        ensure!(explained.contains("completed"), "{explained}");

        // Stragglers get it when they can: one comes back, one moves to where the window is open.
        agents[AWAY].start().await?;
        move_to(&mut agents[FAR], "UTC0").await?;
        for at in [AWAY, FAR] {
            committed(&controller, &rollout, &agents[at].id).await?;
            answers(&agents[at].base, "digits@2").await?;
        }

        // The next one is taken back by a person while it runs: everybody has the former bundle again.
        let former = bundles(&controller, &agents).await?;
        ensure!(former.values().filter(|bundle| *bundle == "digits@2").count() == AGENTS - 1, "{former:?}");
        models::publish(&place, &controller, &models::copy_as(&place, &models::digits(2), 4)?).await?;
        let mut plan = staged("digits@4", &[&agents[0].id, &agents[1].id]);
        plan["stages"][2]["soak"] = 3_600.into();
        let rollout = start(&place, &controller, &plan).await?;
        until("everybody has the next one", LONG, async || {
            let ends = attempts(&controller, &rollout).await?;
            ensure!(ends.len() == AGENTS, "{} members", ends.len());
            let missing: Vec<_> = ends.values().filter(|one| one["state"] != "committed").collect();
            ensure!(missing.is_empty(), "{} are missing, as {}", missing.len(), missing[0]);
            Ok(())
        })
        .await?;
        controller.run(&["rollout", "revert", &rollout, "--reason", "a story goes back"]).await?;
        until("everybody is back", LONG, async || {
            let shown = show(&controller, &rollout).await?;
            ensure!(shown["state"] == "reverted" && shown["unreachable"] == 0, "{}", shown["waiting"]);
            Ok(())
        })
        .await?;
        for attempt in attempts(&controller, &rollout).await?.values() {
            ensure!(attempt["state"] == "reverted", "{attempt}");
        }
        until("everybody says so", PATIENCE, async || {
            let now = bundles(&controller, &agents).await?;
            ensure!(now == former, "{now:?}");
            Ok(())
        })
        .await?;
        for agent in &agents {
            answers(&agent.base, &former[&agent.id]).await?;
        }
        let audit = controller.table(&["audit", "list"]).await?;
        ensure!(audit.contains("rollout.verdict") && audit.contains("a story goes back"), "{audit}");
        try_join_all(agents.iter_mut().map(Agent::stop)).await?;
        controller.process.stop().await?;
        drop((agents, controller, line));
        place.end()
    }
}

/// The rollout as it should go, seen from the controller, which dies in between.
async fn tell(controller: &mut Controller<'_>, rollout: &str, lab: [&String; 2]) -> Result<()> {
    // The lab goes first, and nobody else before it is done.
    until("the lab has it", LONG, async || stage(controller, rollout, 0, "passed").await).await?;
    let early = attempts(controller, rollout).await?;
    for (id, attempt) in &early {
        let committed = attempt["state"] == "committed";
        ensure!(committed || !lab.contains(&id), "{attempt}");
        ensure!(!committed || lab.contains(&id), "before its stage: {attempt}");
    }
    // In the middle of the canaries the controller dies, and comes back to what it left.
    until("canaries are on their way", LONG, async || {
        let shown = show(controller, rollout).await?;
        ensure!(shown["stages"][1]["handed_out"].as_u64().unwrap_or(0) > 0, "{}", shown["stages"][1]);
        Ok(())
    })
    .await?;
    controller.process.kill();
    controller.start_again(&["--limits", "none"]).await?;
    until("the rollout is completed", LONG, async || {
        let shown = show(controller, rollout).await?;
        ensure!(shown["state"] == "completed", "{}: {}", shown["state"], shown["waiting"]);
        Ok(())
    })
    .await
}

/// What is reported of an agent while the one in trouble still is.
fn as_it_should_end(at: usize, attempt: &Value) -> Result<()> {
    ensure!(attempt["number"] == 1, "had two turns: {attempt}");
    match at {
        AWAY => ensure!(attempt["state"] == "assigned", "{attempt}"),
        CRASHES => {
            ensure!(attempt["state"] == "failed" && attempt["failure"]["kind"] == "rolled-back", "{attempt}");
            ensure!(attempt["refusal"]["code"] == "crash-loop", "{attempt}");
        }
        FAR => {
            ensure!(attempt["state"] == "deferred" && attempt["why"] == "window", "{attempt}");
            ensure!(attempt["activated_at"].is_null(), "{attempt}");
        }
        _ => ensure!(attempt["state"] == "committed", "{attempt}"),
    }
    Ok(())
}

/// Thirty agents with `digits@1`, brought in a few at a time.
async fn thirty(place: &Place) -> Result<Fleet<'_>> {
    let controller = Controller::start(place).await?;
    let code = controller.invite(AGENTS as u32).await?;
    let mut agents = Vec::new();
    for first in (1..=AGENTS).step_by(AT_A_TIME) {
        let names = (first..first + AT_A_TIME).map(|number| format!("agent-{number}"));
        let code = &code;
        let joining = names.map(|name| async move {
            let mut agent = Agent::enroll(place, &name, code).await?;
            agent.env.push(("TZ".into(), "UTC0".into()));
            agent.start().await?;
            anyhow::Ok(agent)
        });
        agents.extend(try_join_all(joining).await?);
    }
    for agent in &agents {
        controller.sees(&agent.id, true).await?;
    }
    let mut fleet = Fleet { controller, agents };
    fleet.publish_first(place).await?;
    Ok(fleet)
}

/// Starts the agent anew with a proxy on its way to the broker.
async fn behind_a_proxy(controller: &Controller<'_>, agent: &mut Agent<'_>) -> Result<Proxy> {
    let line = Proxy::start("127.0.0.1:0".parse()?, controller.mqtt.parse()?).await?;
    agent.stop().await?;
    let file = agent.data.join("identity/controller.json");
    let mut identity: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    identity["mqtt_port"] = line.address.port().into();
    std::fs::write(&file, serde_json::to_vec(&identity)?)?;
    agent.start().await?;
    Ok(line)
}

/// Starts the agent anew in another time zone.
async fn move_to(agent: &mut Agent<'_>, zone: &str) -> Result<()> {
    agent.stop().await?;
    agent.env.retain(|(key, _)| key != "TZ");
    agent.env.push(("TZ".into(), zone.into()));
    agent.start().await
}

/// Power cuts while the new bundle is on probation: of the process that switched, and of three starts after it.
async fn crash_again_and_again(agent: &mut Agent<'_>) -> Result<()> {
    for _ in 0..4 {
        until(&format!("{}: on probation", agent.name), LONG, async || {
            let slot = &agent.status().await?["update"]["slots"]["digits"];
            ensure!(slot["phase"] == "probation", "{slot}");
            Ok(())
        })
        .await?;
        answers(&agent.base, "digits@2").await?;
        agent.kill();
        agent.start().await?;
    }
    answers(&agent.base, "digits@1").await?;
    Ok(())
}

/// Cuts the line while the bundle travels over it.
async fn cut_underway(agent: &Agent<'_>, line: &Proxy) -> Result<()> {
    let before = line.connections();
    until(&format!("{}: part of the bundle", agent.name), LONG, async || {
        let slot = &agent.status().await?["update"]["slots"]["digits"];
        let done = slot["progress"]["done_bytes"].as_u64().context("no progress")?;
        ensure!(done >= 128 * KIB, "{slot}");
        Ok(())
    })
    .await?;
    line.cut();
    until(&format!("{}: connected again", agent.name), LONG, async || {
        ensure!(line.connections() > before, "not yet");
        Ok(())
    })
    .await?;
    line.throttle(0);
    Ok(())
}

/// `edgefleet rollout start FILE`; the rollout's id.
async fn start(place: &Place, controller: &Controller<'_>, plan: &Value) -> Result<String> {
    let bundle = plan["rollout"]["bundle"].as_str().context("a plan names a bundle")?;
    let file = place.join(&format!("{bundle}.json"));
    std::fs::write(&file, serde_json::to_vec_pretty(plan)?)?;
    let file = file.to_string_lossy();
    let dry = controller.run(&["rollout", "plan", &file]).await?;
    ensure!(dry.to_string().contains("canary"), "{dry}");
    let started = controller.run(&["rollout", "start", &file, "--yes", "--reason", "a story"]).await?;
    let id = [&started["id"], &started["rollout"]["id"]].into_iter().find_map(|id| id.as_str());
    Ok(id.with_context(|| format!("no id: {started}"))?.to_owned())
}

async fn show(controller: &Controller<'_>, rollout: &str) -> Result<Value> {
    controller.api.get(&format!("/api/v1/rollouts/{rollout}")).await
}

async fn stage(controller: &Controller<'_>, rollout: &str, stage: usize, state: &str) -> Result<()> {
    let shown = show(controller, rollout).await?;
    ensure!(shown["stages"][stage]["state"] == state, "{}", shown["stages"][stage]);
    Ok(())
}

/// By device.
async fn attempts(controller: &Controller<'_>, rollout: &str) -> Result<BTreeMap<String, Value>> {
    let found = controller.api.get(&format!("/api/v1/rollouts/{rollout}/attempts")).await?;
    let all = found["items"].as_array().with_context(|| format!("no attempts: {found}"))?;
    let device = |one: &Value| one["device"].as_str().unwrap_or_default().to_owned();
    Ok(all.iter().map(|one| (device(one), one.clone())).collect())
}

async fn committed(controller: &Controller<'_>, rollout: &str, device: &str) -> Result<()> {
    until(&format!("{device} has committed"), LONG, async || {
        let all = attempts(controller, rollout).await?;
        let one = all.get(device).context("it has no attempt")?;
        ensure!(one["state"] == "committed", "{one}");
        Ok(())
    })
    .await
}

/// What each agent serves, as it says itself.
async fn bundles(controller: &Controller<'_>, agents: &[Agent<'_>]) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for agent in agents {
        ensure!(controller.device(&agent.id).await?["online"] == true, "{} is not online", agent.name);
        let slot = &agent.status().await?["update"]["slots"]["digits"];
        let bundle = slot["active"]["bundle"].as_str().with_context(|| format!("no bundle: {slot}"))?;
        all.insert(agent.id.clone(), bundle.to_owned());
    }
    Ok(all)
}
