use std::time::Duration;

use futures::FutureExt;

use super::*;

const A: u64 = 1;
const B: u64 = 2;
const C: u64 = 3;

fn queue(at_once: usize, queue: usize) -> Arc<Queue> {
    let new = Arc::new(Queue::default());
    new.limit(Some(limits(at_once, queue)));
    new
}

fn limits(at_once: usize, queue: usize) -> Concurrency {
    Concurrency { at_once, of_one: at_once, queue, wait: Duration::from_secs(5) }
}

fn served(queue: &Arc<Queue>, peer: u64) -> Served {
    match queue.enter(peer) {
        Ok(Entrance::Served(served)) => served,
        _ => panic!("there is no room"),
    }
}

fn waits(queue: &Arc<Queue>, peer: u64) -> Waiting {
    match queue.enter(peer) {
        Ok(Entrance::Waits(waiting)) => waiting,
        _ => panic!("it does not wait"),
    }
}

fn is_full(queue: &Arc<Queue>, peer: u64) -> bool {
    matches!(queue.enter(peer), Err(Turned::Full))
}

fn turn(waiting: &mut Waiting) -> Option<Result<Served, Turned>> {
    waiting.turn().now_or_never()
}

fn count(queue: &Arc<Queue>) -> (usize, usize) {
    let state = queue.state();
    assert_eq!(state.waiting, state.lines.iter().map(|line| line.requests.len()).sum::<usize>());
    assert_eq!(state.served, state.lines.iter().map(|line| line.served).sum::<usize>());
    assert!(state.lines.iter().all(|line| line.served > 0 || !line.requests.is_empty()), "who is gone is remembered");
    (state.served, state.waiting)
}

#[tokio::test(start_paused = true)]
async fn those_of_one_peer_are_served_in_the_order_in_which_they_came() {
    let queue = queue(1, 10);
    let mut now = served(&queue, A);
    let mut line: Vec<_> = (0..5).map(|_| waits(&queue, A)).collect();
    while !line.is_empty() {
        assert!(line.iter_mut().all(|waiting| turn(waiting).is_none()));
        drop(now);
        assert!(line.iter_mut().skip(1).all(|waiting| turn(waiting).is_none()), "the first is first");
        now = turn(&mut line[0]).unwrap().unwrap();
        line.remove(0);
    }
    drop(now);
    assert_eq!(count(&queue), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn peers_take_turns_however_many_requests_one_of_them_has() {
    let queue = queue(1, 100);
    let mut now = served(&queue, A);
    let mut flood: Vec<_> = (0..50).map(|_| waits(&queue, A)).collect();
    let (mut b, mut c) = (waits(&queue, B), waits(&queue, C));
    drop(now);
    now = turn(&mut flood[0]).unwrap().unwrap();
    drop(now);
    now = turn(&mut b).unwrap().unwrap();
    let mut again = waits(&queue, B);
    drop(now);
    now = turn(&mut c).unwrap().unwrap();
    drop(now);
    now = turn(&mut flood[1]).unwrap().unwrap();
    drop(now);
    assert!(turn(&mut again).unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_is_served_already_has_no_turn_before_those_who_wait_for_longer() {
    let queue = queue(1, 100);
    let now = served(&queue, A);
    let (mut first, mut second) = (waits(&queue, B), waits(&queue, A));
    drop(now);
    let now = turn(&mut first).unwrap().unwrap();
    assert!(turn(&mut second).is_none());
    drop(now);
    assert!(turn(&mut second).unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_peer_may_have_the_whole_queue_until_another_comes_which_has_its_half() {
    let queue = queue(1, 6);
    let _now = served(&queue, A);
    let mut flood: Vec<_> = (0..6).map(|_| waits(&queue, A)).collect();
    assert!(is_full(&queue, A));
    let others: Vec<_> = (0..3).map(|_| waits(&queue, B)).collect();
    assert!(is_full(&queue, B) && is_full(&queue, A), "each has its half");
    let newest: Vec<_> = flood.drain(3..).collect();
    for mut waiting in newest {
        assert_eq!(turn(&mut waiting).unwrap().err(), Some(Turned::Full));
    }
    assert!(flood.iter_mut().all(|waiting| turn(waiting).is_none()), "the oldest stay");
    assert_eq!(count(&queue), (1, 6));
    let _third = waits(&queue, C);
    assert_eq!(count(&queue), (1, 6));
    drop(others);
    drop(flood);
    assert_eq!(count(&queue), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn who_leaves_the_queue_makes_room_at_once_wherever_it_stood() {
    let queue = queue(1, 3);
    let now = served(&queue, A);
    let mut line: Vec<_> = (0..3).map(|_| waits(&queue, A)).collect();
    assert!(is_full(&queue, A));
    drop(line.remove(1));
    assert_eq!(count(&queue), (1, 2));
    line.push(waits(&queue, A));
    drop(line.remove(0));
    drop(now);
    assert!(turn(&mut line[0]).unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_was_called_and_is_gone_leaves_its_turn_to_the_next() {
    let queue = queue(1, 3);
    let now = served(&queue, A);
    let (called, mut next) = (waits(&queue, A), waits(&queue, B));
    drop(now);
    drop(called);
    assert!(turn(&mut next).unwrap().is_ok());
    drop(next);
    assert_eq!(count(&queue), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_longer_than_it_may() {
    let queue = queue(1, 3);
    let _now = served(&queue, A);
    let mut waiting = waits(&queue, A);
    let start = Instant::now();
    assert_eq!(waiting.turn().await.err(), Some(Turned::Late));
    assert!((5000..5010).contains(&start.elapsed().as_millis()));
    drop(waiting);
    assert_eq!(count(&queue), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn where_nobody_may_wait_one_more_is_turned_away_at_once() {
    let queue = queue(2, 0);
    let held = [served(&queue, A), served(&queue, A)];
    assert!(is_full(&queue, A) && is_full(&queue, B));
    drop(held);
    served(&queue, B);
}

#[tokio::test(start_paused = true)]
async fn other_limits_hold_at_once_for_those_who_are_there() {
    let queue = queue(1, 10);
    let first = served(&queue, A);
    let mut line: Vec<_> = (0..4).map(|_| waits(&queue, A)).collect();
    queue.limit(Some(limits(2, 10)));
    let second = turn(&mut line[0]).unwrap().unwrap();
    assert!(turn(&mut line[1]).is_none());
    queue.limit(Some(limits(1, 10)));
    drop(first);
    assert!(turn(&mut line[1]).is_none(), "there are as many as may be");
    queue.limit(None);
    let all: Vec<_> = line.drain(1..).map(|mut waiting| turn(&mut waiting).unwrap().unwrap()).collect();
    let unbounded = served(&queue, A);
    assert_eq!(count(&queue), (5, 0));
    drop((second, all, unbounded));
    assert_eq!(count(&queue), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_has_as_many_as_one_may_waits_while_others_are_served() {
    let queue = Arc::new(Queue::default());
    queue.limit(Some(Concurrency { of_one: 2, ..limits(4, 10) }));
    let mut held = vec![served(&queue, A), served(&queue, A)];
    let (mut next, mut last) = (waits(&queue, A), waits(&queue, A));
    held.extend([served(&queue, B), served(&queue, B)]);
    let mut other = waits(&queue, B);
    let mut third = waits(&queue, C);
    drop(held.pop());
    assert!(turn(&mut next).is_none(), "it has its two");
    let now = turn(&mut other).unwrap().unwrap();
    drop(held.pop());
    assert!(turn(&mut third).unwrap().is_ok() && turn(&mut last).is_none());
    drop(held.pop());
    let first = turn(&mut next).unwrap().unwrap();
    assert!(turn(&mut last).is_none());
    drop((held, now, first, last));
    assert_eq!(count(&queue), (0, 0));
}
