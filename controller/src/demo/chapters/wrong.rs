//! A bundle that passes every check and is wrong on one class: labels stop it before it answers anybody.

use crate::{
    demo::{
        DemoError,
        plans::{all, canary, plan, shadow},
        tale::Tale,
    },
    evidence::Gate,
    rollout::{Because, Decision, Rule, Span},
};

const BUNDLE: &str = "digits@5";

pub(super) async fn tell(tale: &mut Tale<'_>) -> Result<(), DemoError> {
    tale.push(&tale.options.model.join("v5"), BUNDLE).await?;
    tale.console.say("   signed, its golden samples match, every device's trial run accepts it");
    let devices = tale.stage.agents.len();
    let stages = vec![shadow(devices), canary(devices, &[Gate::Hard]), all()];
    let plan = plan(tale.options, BUNDLE, stages, Span::minutes(10))?;
    let mut watched = tale.roll_out(plan).await?;
    let ended = tale.watch_to_end(&mut watched).await?;
    tale.console.say("   why, as `rollout explain` has it:");
    tale.explain(&ended.rollout);
    let stopped = ended.on("shadow", Decision::StageFailed);
    tale.report.check(
        "digits@5 is stopped in its shadow stage by evidence from labels",
        stopped.is_some_and(|one| matches!(one.because, Because::Rule { rule: Rule::Harm, .. })),
        ended.short(),
    );
    let answered = tale.stage.answered(BUNDLE);
    tale.report.check("digits@5 never answered a request", answered == 0, answered.to_string());
    tale.console.say(&format!("   requests it answered: {answered}"));
    tale.report.check("its rollout is taken back", ended.state == "reverted", ended.short());
    Ok(())
}
