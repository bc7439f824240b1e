//! Which endpoint takes the next request.
//!
//! Among those that take requests, of the lowest priority number that has any (RFC 2782). Where none does, one is asked all
//! the same: what might work is better than a refusal that cannot.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::endpoint::Endpoint;
use super::{Attempts, Member};
use crate::config::Balance;

/// The one that takes the next request, but none of those tried before. `next` counts the turns.
pub(super) fn pick<'a>(
    members: &'a [Arc<Member>],
    balance: Balance,
    next: &AtomicUsize,
    attempts: &Attempts,
    now: Instant,
) -> Option<&'a Arc<Member>> {
    let untried = |member: &&Arc<Member>| !attempts.has_tried(&member.endpoint);
    // One that was ejected for its answers is due for a request that decides.
    if let Some(due) = members.iter().filter(untried).find(|member| member.endpoint.health.may_be_probed(now)) {
        return Some(due);
    }
    // Who asks to be left alone is not gone.
    let is_in = |member: &&Arc<Member>| member.endpoint.health.is_in();
    let priority = members.iter().filter(untried).filter(is_in).map(|member| member.priority).min();
    let Some(priority) = priority else { return choose(members, |m| untried(m), balance, next, now) };
    let fit = |member: &&Arc<Member>| member.priority == priority && untried(member) && is_in(member);
    let held = |member: &&Arc<Member>| member.endpoint.is_held(now);
    let (all, alone) =
        members.iter().filter(fit).fold((0, 0), |(all, alone), member| (all + 1, alone + usize::from(held(&member))));
    if alone == 0 {
        return choose(members, fit, balance, next, now);
    }
    // Where more than half of them want to be left alone, the others would be next if all went there: then what a request
    // costs decides, of all of them, for of two at random both may be among those.
    if 2 * alone > all {
        return match balance {
            Balance::PeakEwma => least(members, fit, |member| weighed(member, now, Endpoint::cost)),
            Balance::LeastRequest => least(members, fit, |member| weighed(member, now, Endpoint::load)),
            Balance::RoundRobin | Balance::LeastConnections => choose(members, fit, balance, next, now),
        };
    }
    choose(members, |member| fit(member) && !held(member), balance, next, now)
}

fn choose<'a>(
    members: &'a [Arc<Member>],
    fit: impl Fn(&&'a Arc<Member>) -> bool,
    balance: Balance,
    next: &AtomicUsize,
    now: Instant,
) -> Option<&'a Arc<Member>> {
    match balance {
        // Among those that are fit, or who follows one that is out would have its turns too.
        Balance::RoundRobin => {
            let count = members.iter().filter(&fit).count();
            let turn = next.fetch_add(1, Ordering::Relaxed) % count.max(1);
            members.iter().filter(&fit).cycle().nth(turn)
        }
        Balance::LeastConnections => least(members, fit, |member| weighed(member, now, Endpoint::load)),
        Balance::PeakEwma => two(members, &fit, |member| weighed(member, now, Endpoint::cost)),
        Balance::LeastRequest => two(members, &fit, |member| member.endpoint.load_by(member.weight, now)),
    }
}

/// The one with the lowest cost; of several any.
fn least<'a>(
    members: &'a [Arc<Member>],
    fit: impl Fn(&&'a Arc<Member>) -> bool,
    cost: impl Fn(&Member) -> f64,
) -> Option<&'a Arc<Member>> {
    let (count, start) = (members.len(), usize::from(rand::random::<u16>()));
    let from = members.iter().cycle().skip(start % count.max(1)).take(count).filter(fit);
    from.min_by(|a, b| cost(a).total_cmp(&cost(b)))
}

/// Of two at random the one with the lower cost: nearly as good as the best of all, and no two workers run to the same
/// one at once (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing").
fn two<'a>(
    members: &'a [Arc<Member>],
    fit: impl Fn(&&'a Arc<Member>) -> bool,
    cost: impl Fn(&Member) -> f64,
) -> Option<&'a Arc<Member>> {
    let random = rand::random::<u64>();
    let first = by_weight(members, &fit, random >> 32)?;
    let other = |member: &&'a Arc<Member>| fit(member) && !Arc::ptr_eq(member, first);
    let Some(second) = by_weight(members, other, random & 0xffff_ffff) else { return Some(first) };
    // Of two that cost the same the first: then weights are shares also where nothing is under way.
    Some(if cost(second) < cost(first) { second } else { first })
}

/// One at random, the more often the more weight it has.
fn by_weight<'a>(
    members: &'a [Arc<Member>],
    fit: impl Fn(&&'a Arc<Member>) -> bool,
    random: u64,
) -> Option<&'a Arc<Member>> {
    let weight = |member: &Arc<Member>| u64::from(member.weight.max(1));
    let all: u64 = members.iter().filter(&fit).map(weight).sum();
    let mut left = random.checked_rem(all)?;
    // One of them may be out by now.
    let found = members.iter().filter(&fit).find(|member| {
        let here = left < weight(member);
        left = left.saturating_sub(weight(member));
        here
    });
    found.or_else(|| members.iter().find(fit))
}

fn weighed(member: &Member, now: Instant, cost: impl Fn(&Endpoint, Instant) -> f64) -> f64 {
    cost(&member.endpoint, now) / f64::from(member.weight.max(1))
}

#[cfg(test)]
mod tests;
