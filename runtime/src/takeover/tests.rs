//! Both ends of a take-over, over a real socket.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::line::Line;
use super::*;
use crate::admin::Readiness;

/// A directory that is its user's alone, and the socket in it.
fn private() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("own/takeover.sock");
    (directory, path)
}

/// Longer than anything here lasts.
const LONG: Duration = Duration::from_secs(60);

fn never() -> Readiness {
    Err(vec!["the moon".to_owned()])
}

async fn hand(post: &mut Post, sockets: &[(SocketAddr, TcpListener)]) -> Successor {
    let mut successor = post.next().await.unwrap();
    successor.hand(sockets).await.unwrap();
    successor
}

#[tokio::test]
async fn a_successor_gets_every_socket_under_its_address_and_both_may_accept() {
    let (_directory, path) = private();
    assert!(meet(&path, LONG).await.unwrap().is_none(), "there is nobody before the first");
    let mut post = Post::open(&path, false).unwrap();
    let listeners: Vec<_> = (0..100).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let sockets: Vec<_> = listeners.into_iter().map(|socket| (socket.local_addr().unwrap(), socket)).collect();
    let (mut successor, met) = tokio::join!(hand(&mut post, &sockets), meet(&path, LONG));
    let (predecessor, mut inherited) = met.unwrap().unwrap();
    assert_eq!(inherited.count(), 100);
    assert_eq!(successor.pid(), Some(std::process::id().cast_signed()));
    for (address, own) in &sockets {
        let socket = inherited.take(*address).unwrap();
        let client = std::net::TcpStream::connect(address).unwrap();
        drop((socket.accept().unwrap(), client));
        let client = std::net::TcpStream::connect(address).unwrap();
        drop((own.accept().unwrap(), client));
    }
    assert_eq!(inherited.count(), 0);
    let taken = CancellationToken::new();
    let released = async {
        successor.taken().await.unwrap();
        successor.released().await.unwrap();
    };
    let ((), relief) = tokio::join!(released, predecessor.relieve(|| Ok(()), &taken));
    assert!(matches!(relief.unwrap(), Relief::InOrder) && taken.is_cancelled());
    drop(post);
    Post::open(&path, true).unwrap();
}

#[tokio::test]
async fn a_predecessor_learns_that_its_successor_has_ended() {
    let (_directory, path) = private();
    let mut post = Post::open(&path, false).unwrap();
    let (mut successor, met) = tokio::join!(hand(&mut post, &[]), meet(&path, LONG));
    drop(met);
    assert!(matches!(successor.taken().await, Err(TakeoverError::Broke(_))));

    // One that says that it could serve, and is not there any more when it is asked to.
    let (mut successor, met) = tokio::join!(hand(&mut post, &[]), meet(&path, LONG));
    let (predecessor, _) = met.unwrap().unwrap();
    predecessor.line.say(SERVING, None).await.unwrap();
    drop(predecessor);
    assert!(matches!(successor.taken().await, Err(TakeoverError::Broke(_))));
}

#[tokio::test]
async fn one_that_is_late_cannot_take_over_any_more() {
    let (_directory, path) = private();
    let mut post = Post::open(&path, false).unwrap();
    let (mut successor, met) = tokio::join!(hand(&mut post, &[]), meet(&path, LONG));
    let (predecessor, _) = met.unwrap().unwrap();
    // It hangs.
    successor.until = Instant::now();
    let error = successor.taken().await.unwrap_err();
    assert!(error.to_string().contains("not ready in time"), "{error}");
    let error = predecessor.line.say(TAKEN, None).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);

    // It was asked, and has answered at the last moment.
    let (mut successor, met) = tokio::join!(hand(&mut post, &[]), meet(&path, LONG));
    let (predecessor, _) = met.unwrap().unwrap();
    predecessor.line.say(TAKEN, None).await.unwrap();
    (successor.asked, successor.until) = (true, Instant::now());
    successor.taken().await.unwrap();

    // It gives up by itself where it is not ready.
    let within = Duration::from_secs(1);
    let (_successor, met) = tokio::join!(hand(&mut post, &[]), meet(&path, within));
    let (predecessor, _) = met.unwrap().unwrap();
    let error = predecessor.relieve(never, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, TakeoverError::NotReady { .. }) && error.to_string().contains("the moon"), "{error}");
}

/// What decides is the lock: that the socket can be connected to proves nothing.
#[tokio::test]
async fn where_the_connection_breaks_a_successor_goes_on_alone_only_if_nobody_holds_the_post() {
    let (_directory, path) = private();
    let mut post = Post::open(&path, false).unwrap();
    let (successor, met) = tokio::join!(hand(&mut post, &[]), meet(&path, LONG));
    let (predecessor, _) = met.unwrap().unwrap();
    // It ends, and its socket has not been closed yet.
    drop((successor, post.lock));
    UnixStream::connect(&path).await.unwrap();
    let relief = predecessor.relieve(never, &CancellationToken::new()).await.unwrap();
    assert!(matches!(relief, Relief::Alone(Some(_))), "nobody serves any more");
    drop((relief, post.listener));

    let mut post = Post::open(&path, true).unwrap();
    let (successor, met) = tokio::join!(hand(&mut post, &[]), meet(&path, LONG));
    let (predecessor, _) = met.unwrap().unwrap();
    // A lock belongs to the open file, so this one is that of another process, which lives.
    drop(post);
    let lock = std::fs::File::create(path.with_extension("sock.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    drop(successor);
    let error = predecessor.relieve(never, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, TakeoverError::GivenUp), "{error}");
}

#[tokio::test]
async fn a_predecessor_that_ends_itself_leaves_to_a_successor_that_is_not_ready_yet() {
    let (_directory, path) = private();
    let mut post = Post::open(&path, false).unwrap();
    // The second could serve just before it is asked to.
    for ready in [false, true] {
        let (mut successor, met) = tokio::join!(hand(&mut post, &[]), meet(&path, LONG));
        let (predecessor, _) = met.unwrap().unwrap();
        if ready {
            predecessor.line.say(SERVING, None).await.unwrap();
        }
        let leave = async {
            successor.ask().await.unwrap();
            successor.taken().await.unwrap();
            successor.released().await.unwrap();
        };
        let taken = CancellationToken::new();
        let ((), relief) = tokio::join!(leave, predecessor.relieve(never, &taken));
        assert!(matches!(relief.unwrap(), Relief::InOrder) && taken.is_cancelled());
    }
}

#[tokio::test]
async fn where_the_process_before_ends_while_it_hands_over_there_is_none() {
    let (_directory, path) = private();
    let mut post = Post::open(&path, false).unwrap();
    let ends = async {
        drop(post.next().await.unwrap());
        drop(post);
    };
    let ((), met) = tokio::join!(ends, meet(&path, LONG));
    assert!(met.unwrap().is_none());
}

#[tokio::test]
async fn a_second_successor_is_sent_away() {
    let (_directory, path) = private();
    let mut post = Post::open(&path, false).unwrap();
    let refuse = async { post.next().await.unwrap().busy().await };
    let ((), met) = tokio::join!(refuse, meet(&path, LONG));
    assert!(matches!(met, Err(TakeoverError::Busy)));
}

#[tokio::test]
async fn another_protocol_is_not_understood() {
    let (_directory, path) = private();
    let mut post = Post::open(&path, false).unwrap();
    let client = Line::new(UnixStream::connect(&path).await.unwrap());
    client.say("countersign take-over 2 60", None).await.unwrap();
    let error = post.next().await.unwrap().hand::<TcpListener>(&[]).await.unwrap_err();
    assert!(error.to_string().contains("take-over 2"), "{error}");
    // It is told, so that it can say so.
    let answer = { client }.hear().await.unwrap().unwrap().text;
    assert_eq!(answer, "unknown 1");
    let newer = async {
        let mut successor = post.next().await.unwrap();
        successor.line.hear().await.unwrap();
        successor.line.say("unknown 2", None).await.unwrap();
    };
    let ((), met) = tokio::join!(newer, meet(&path, LONG));
    assert!(met.unwrap_err().to_string().contains("of version 2"));

    let lie = async {
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut successor = post.next().await.unwrap();
        successor.hand(&[("127.0.0.1:1".parse().unwrap(), own)]).await
    };
    let (_, met) = tokio::join!(lie, meet(&path, LONG));
    assert!(met.unwrap_err().to_string().contains("does not listen there"));
}

#[tokio::test]
async fn a_directory_that_others_may_write_is_refused() {
    let (directory, path) = private();
    drop(Post::open(&path, false).unwrap());
    let own = directory.path().join("own");
    assert_eq!(std::fs::metadata(&own).unwrap().mode() & 0o777, 0o700);
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o770)).unwrap();
    assert!(matches!(Post::open(&path, true), Err(TakeoverError::NotPrivate { .. })));
    let error = meet(&path, LONG).await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("chmod go-w"), "{error}");
}
