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

const PAGE: usize = 10_000;

#[async_trait]
impl Roster for Fleet {
    async fn select(&self, selectors: &[Selector]) -> Result<Vec<DeviceId>, StoreError> {
        let mut selected = Vec::new();
        let mut query = DeviceQuery {
            selectors: selectors.to_vec(),
            state: Some(DeviceState::Enrolled),
            after: None,
            limit: PAGE,
        };
        loop {
            let page = self.list_devices(&query);
            selected.extend(page.items.iter().map(|known| known.device.id.clone()));
            match page.next.and(selected.last()) {
                Some(last) => query.after = Some(last.clone()),
                None => return Ok(selected),
            }
        }
    }
}
