//! Where most stories begin: a controller, agents that are online, and `digits@1` on all of them.

use crate::{agent::Agent, controller::Controller, inference, models, place::Place};
use anyhow::Result;

pub struct Fleet<'p> {
    pub controller: Controller<'p>,
    pub agents: Vec<Agent<'p>>,
}

impl<'p> Fleet<'p> {
    /// # Errors
    /// If any step fails.
    pub async fn start(place: &'p Place, agents: u32) -> Result<Self> {
        let mut fleet = Self::empty(place, agents).await?;
        fleet.publish_first(place).await?;
        Ok(fleet)
    }

    /// The same without a bundle.
    ///
    /// # Errors
    /// If any step fails.
    pub async fn empty(place: &'p Place, agents: u32) -> Result<Self> {
        let controller = Controller::start(place).await?;
        Self::join(place, controller, agents).await
    }

    /// Brings `agents` devices in.
    ///
    /// # Errors
    /// If any step fails.
    pub async fn join(place: &'p Place, controller: Controller<'p>, agents: u32) -> Result<Self> {
        let code = controller.invite(agents).await?;
        let mut all = Vec::new();
        for number in 1..=agents {
            let mut agent = Agent::enroll(place, &format!("agent-{number}"), &code).await?;
            agent.start().await?;
            controller.sees(&agent.id, true).await?;
            all.push(agent);
        }
        Ok(Self { controller, agents: all })
    }

    /// `digits@1` to everybody, and everybody answers with it.
    ///
    /// # Errors
    /// If any step fails.
    pub async fn publish_first(&mut self, place: &Place) -> Result<()> {
        models::publish(place, &self.controller, &models::digits(1)).await?;
        self.controller.assign_and_commit("digits@1").await?;
        for agent in &self.agents {
            inference::answers(&agent.base, "digits@1").await?;
        }
        Ok(())
    }

    /// Ends everything in order.
    ///
    /// # Errors
    /// If something does not end as it should.
    pub async fn stop(mut self) -> Result<()> {
        for agent in &mut self.agents {
            agent.stop().await?;
        }
        self.controller.process.stop().await
    }
}
