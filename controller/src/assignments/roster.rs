//! The fleet as the roster of assignments.

use super::service::Roster;
use crate::{
    fleet::{
        Fleet,
        devices::{DeviceQuery, DeviceState},
    },
    store::StoreError,
};
use async_trait::async_trait;
use edgefleet_shared::{ids::DeviceId, selector::Selector};

#[async_trait]
impl Roster for Fleet {
    async fn select(
        &self,
        selectors: &[Selector],
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<DeviceId>, StoreError> {
        let query = DeviceQuery {
            selectors: selectors.to_vec(),
            state: Some(DeviceState::Enrolled),
            after: after.cloned(),
            limit,
        };
        let page = self.list_devices(&query);
        Ok(page.items.iter().map(|known| known.device.id.clone()).collect())
    }
}
