//! The controller dies in the middle of a rollout. Devices go on; started again, so does the rollout.

use crate::{
    demo::{
        DemoError,
        plans::{all, canary, plan},
        tale::{FLEET_LIMIT, Tale, numbered},
    },
    evidence::Gate,
    rollout::{Bucket, Span},
};

const BUNDLE: &str = "digits@7";
/// Requests answered without a controller before it comes back, over all devices.
const ALONE: u64 = 200;

pub(super) async fn tell(tale: &mut Tale<'_>) -> Result<(), DemoError> {
    let source = numbered(&tale.options.model.join("v2"), &tale.options.dir.join("v7"), 7)?;
    tale.push(&source, BUNDLE).await?;
    let few = canary(tale.stage.agents.len(), &[Gate::Hard]);
    let plan = plan(tale.options, BUNDLE, vec![few, all()], Span::minutes(10))?;
    let mut watched = tale.roll_out(plan).await?;
    let busy = |stage: &crate::rollout::StageProgress| {
        stage.counts.get(Bucket::InFlight) + stage.counts.get(Bucket::Committed) > 0
    };
    tale.watch(&mut watched, "the first canary", |rollout| rollout.stages.first().is_some_and(busy)).await?;
    tale.stage.serve.kill();
    tale.console.say("   SIGKILL to the controller, its canaries under way");
    let answered = |tale: &Tale<'_>| {
        let loads = tale.stage.agents.iter().filter_map(|agent| agent.load.as_ref());
        loads.map(|load| load.seen.lock().requests).sum::<u64>()
    };
    let before = answered(tale);
    let alone = {
        let tale = &*tale;
        tale.stage
            .wait_for(
                "answers without a controller",
                FLEET_LIMIT,
                async |_| (),
                async |_| {
                    let since = answered(tale) - before;
                    Ok(if since >= ALONE { Ok(since) } else { Err(format!("{since} so far")) })
                },
            )
            .await?
    };
    tale.console.say(&format!("   {alone} requests answered without a controller"));
    tale.stage.reopen().await?;
    tale.console.say("   the controller is back");
    let ended = tale.watch_to_end(&mut watched).await?;
    let serving = tale.stage.serving(BUNDLE).await?;
    tale.report.check(
        "a rollout goes on to its end after its controller was killed",
        ended.state == "completed" && serving == tale.stage.agents.len(),
        format!("{serving} serve {BUNDLE}; {}", ended.short()),
    );
    if serving < tale.stage.agents.len() {
        return Ok(());
    }
    tale.released.push(BUNDLE.to_owned());
    tale.enough(BUNDLE).await?;
    tale.console.table(&tale.stage).await;
    Ok(())
}
