//! A better release replaces the first one while requests go on: lab, shadow, canary, all.

use crate::{
    demo::{
        DemoError,
        plans::{all, canary, devices_for_a_sign_test, lab, parsed, plan, shadow},
        rollouts::{Watched, is_over},
        stage::text,
        tale::Tale,
    },
    evidence::Gate,
    rollout::{Because, Decision, PauseWhy, Rule, Span, State},
};
use serde_json::json;

const BUNDLE: &str = "digits@2";

pub(super) async fn tell(tale: &mut Tale<'_>) -> Result<(), DemoError> {
    tale.push(&tale.options.model.join("v2"), BUNDLE).await?;
    let drawn = tale.stage.agents.len().saturating_sub(1);
    let first = tale.stage.agents.first().map(|agent| agent.id.clone()).unwrap_or_default();
    let stages =
        vec![lab(parsed(BUNDLE, &first)?), shadow(drawn), canary(drawn, &[Gate::Hard, Gate::Latency]), all()];
    let plan = plan(tale.options, BUNDLE, stages, Span::minutes(10))?;
    let needed = devices_for_a_sign_test(&plan);
    let mut watched = tale.roll_out(plan).await?;
    let what = "the verdict on the canaries";
    let asks = tale
        .watch(&mut watched, what, |rollout| rollout.approvals.open.is_some() || is_over(&rollout.state))
        .await?;
    if asks.approvals.open.is_some() {
        vouch(tale, &watched, needed).await?;
    } else if matches!(asks.state, State::Paused { why: PauseWhy::Inconclusive }) {
        go_on(tale, &watched).await?;
    }
    let ended = tale.watch_to_end(&mut watched).await?;
    let by_labels = ended.on("shadow", Decision::StagePassed);
    let compared = tale.stage.compared(BUNDLE);
    tale.report.check(
        "digits@2 passes its shadow stage by evidence from labels",
        by_labels.is_some_and(|one| matches!(one.because, Because::Rule { rule: Rule::Safe, .. })),
        format!("{compared} distinct images; {}", ended.short()),
    );
    let serving = tale.stage.serving(BUNDLE).await?;
    let everybody = serving == tale.stage.agents.len();
    tale.report.check(
        "the rollout of digits@2 completes on every device",
        ended.state == "completed" && everybody,
        format!("{serving} devices; {}", ended.short()),
    );
    if !everybody {
        return Ok(());
    }
    tale.released.push(BUNDLE.to_owned());
    tale.enough(BUNDLE).await?;
    tale.console.table(&tale.stage).await;
    Ok(())
}

/// Too few devices for a comparison: a person other than the author has to answer for it, by name.
async fn vouch(tale: &mut Tale<'_>, watched: &Watched, needed: usize) -> Result<(), DemoError> {
    let devices = tale.stage.agents.len();
    tale.console.say(&format!(
        "   INCONCLUSIVE canary  {devices} devices prove nothing about latency; the sign test needs {needed} (--devices {needed})"
    ));
    let reason = "watched the canaries' latency by hand";
    let (own, answer) = tale.approve(watched, &tale.stage.token, reason).await?;
    let code = text(&answer["code"]);
    tale.report.check(
        "nobody vouches for a rollout of their own",
        !own && code == "approval-own",
        code.as_str(),
    );
    tale.console.say(&format!("                        the author may not vouch for it: {code}"));
    let second = tale.second_person("second-person", "approver").await?;
    let (taken, answer) = tale.approve(watched, &second, reason).await?;
    tale.report.check(
        "a second person vouches for what few devices cannot prove",
        taken,
        text(&answer["code"]),
    );
    Ok(())
}

/// Enough devices to compare, and still no verdict in the longest soak, as on a busy machine: it stands until a
/// person other than the author goes on, with a reason.
async fn go_on(tale: &mut Tale<'_>, watched: &Watched) -> Result<(), DemoError> {
    let second = tale.second_person("on-call", "operator").await?;
    let order = json!({"order": "resume", "reason": "no canary is slower than its budget"});
    let path = format!("/api/v1/rollouts/{}/orders", watched.id);
    let (taken, answer) = tale.stage.post(&path, &second, &order).await?;
    tale.report.check("a second person goes on without a verdict", taken, text(&answer["code"]));
    Ok(())
}
