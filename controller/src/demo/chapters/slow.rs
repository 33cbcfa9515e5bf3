//! A bundle that is right and slow: no label can tell. The devices notice, and go back by themselves.

use crate::{
    demo::{
        DemoError,
        plans::{all, canary, plan, shadow},
        rollouts::wrapped,
        stage::{pace, text},
        tale::Tale,
    },
    evidence::Gate,
    rollout::{Because, Decision, Rule, Span},
};

const BUNDLE: &str = "digits@6";

pub(super) async fn tell(tale: &mut Tale<'_>) -> Result<(), DemoError> {
    tale.push(&tale.options.model.join("v6"), BUNDLE).await?;
    tale.console.say(
        "   every answer as good as those of digits@2, far within its own limits, and many times slower",
    );
    let devices = tale.stage.agents.len();
    let stages = vec![shadow(devices), canary(devices, &[Gate::Hard]), all()];
    // Time for the hundred answers that a 95th percentile takes.
    let probation = Span::minutes(40 * u64::from(pace(devices)));
    let plan = plan(tale.options, BUNDLE, stages, probation)?;
    let mut watched = tale.roll_out(plan).await?;
    tale.tried.push(BUNDLE.to_owned());
    let ended = tale.watch_to_end(&mut watched).await?;
    let path = format!("/api/v1/rollouts/{}/attempts?limit=1000", watched.id);
    let attempts = tale.stage.get(&path).await?;
    let all = attempts["items"].as_array().cloned().unwrap_or_default();
    let own: Vec<_> = all.iter().filter(|a| a["refusal"]["code"] == "latency").collect();
    for attempt in &own {
        let agent = tale.stage.agents.iter().find(|agent| attempt["device"] == *agent.id);
        let name = agent.map_or_else(|| text(&attempt["device"]), |agent| agent.name.clone());
        let said = format!("{name} went back by itself: {}", text(&attempt["refusal"]["message"]));
        wrapped(&said, "      ", 3).iter().for_each(|line| tale.console.say(line));
    }
    tale.report.check(
        "devices go back from digits@6 by themselves, for its latency",
        own.len() >= 2,
        format!("{} devices; {}", own.len(), ended.short()),
    );
    tale.report.check(
        "labels find nothing wrong with digits@6 in its shadow stage",
        ended.on("shadow", Decision::StagePassed).is_some(),
        ended.short(),
    );
    let stopped = ended.on("canary", Decision::StageFailed);
    tale.report.check(
        "digits@6 is stopped in its canary stage by a hard gate",
        stopped.is_some_and(|one| matches!(one.because, Because::Rule { rule: Rule::RolledBack, .. })),
        ended.short(),
    );
    let before = tale.released.last().cloned().unwrap_or_default();
    let serving = tale.stage.serving(&before).await?;
    tale.report.check(
        "every device is back on the bundle before digits@6",
        ended.state == "reverted" && serving == tale.stage.agents.len(),
        format!("{serving} serve {before}; {}", ended.short()),
    );
    tale.console.say(&format!("   {serving} devices serve {before}"));
    Ok(())
}
