//! stub
use crate::domain::interfaces::StoreStats;
/// stub
#[derive(Debug, Default)]
pub struct Health;
impl Health {
    /// stub
    pub fn beat(&self, name: &'static str) {
        let _ = name;
    }
    /// stub
    pub fn set_stats(&self, stats: StoreStats) {
        let _ = stats;
    }
}
