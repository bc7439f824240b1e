//! What is shown of an upstream to who looks after the process.

use std::time::Instant;

use super::Upstream;

impl Upstream {
    /// What is known of each endpoint, for who looks after the process.
    pub(crate) fn show(&self) -> serde_json::Value {
        let now = Instant::now();
        let members = self.members.borrow();
        let identity = self.called.as_ref().map(|called| &called.id).or(self.listener.expected.as_ref());
        let endpoints = members.all.iter().map(|member| {
            let endpoint = &member.endpoint;
            let (out, held) = (endpoint.health.out(now), endpoint.held_for(now));
            let standing = match &out {
                Some(out) => format!("out: {}", out.reason.as_str()),
                None if held.is_some() => "held".to_owned(),
                None => "in".to_owned(),
            };
            serde_json::json!({
                "address": endpoint.name(),
                "standing": standing,
                "why": out.as_ref().map(|out| &*out.why),
                "out_s": out.as_ref().map(|out| out.since.as_secs_f64()),
                "again_s": out.as_ref().map_or(held, |out| out.again).map(|again| again.as_secs_f64()),
                "under_way": endpoint.in_flight(),
                "latency": endpoint.latency(now),
                "weight": member.weight,
                "priority": member.priority,
            })
        });
        serde_json::json!({
            "listener": &*self.listener.name,
            "to": self.address,
            "identity": identity.map(ToString::to_string),
            "problem": members.problem,
            "endpoints": endpoints.collect::<serde_json::Value>(),
        })
    }
}
