//! Both ends of a take-over, over a real socket.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// A directory that is its user's alone, and the socket in it.
fn private() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("own/takeover.sock");
    (directory, path)
}

async fn hand(post: &Post, sockets: &[(SocketAddr, TcpListener)]) -> Successor {
    let mut successor = post.next().await.unwrap();
    successor.hand(sockets).await.unwrap();
    successor
}

#[tokio::test]
async fn a_successor_gets_every_socket_under_its_address_and_both_may_accept() {
    let (_directory, path) = private();
    assert!(meet(&path).await.unwrap().is_none(), "there is nobody before the first");
    let post = Post::open(&path, false).unwrap();
    let listeners: Vec<_> = (0..100).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let sockets: Vec<_> = listeners.into_iter().map(|socket| (socket.local_addr().unwrap(), socket)).collect();
    let (mut successor, met) = tokio::join!(hand(&post, &sockets), meet(&path));
    let (mut predecessor, mut inherited) = met.unwrap().unwrap();
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
    let released = async {
        successor.serving().await.unwrap();
        successor.released().await.unwrap();
    };
    let ((), relieved) = tokio::join!(released, predecessor.relieve());
    assert!(relieved.unwrap());
    post.leave();
    Post::open(&path, true).unwrap();
}

#[tokio::test]
async fn each_learns_that_the_other_has_ended() {
    let (_directory, path) = private();
    let post = Post::open(&path, false).unwrap();
    let (mut successor, met) = tokio::join!(hand(&post, &[]), meet(&path));
    drop(met);
    assert!(matches!(successor.serving().await, Err(TakeoverError::Broke(_))));

    let (successor, met) = tokio::join!(hand(&post, &[]), meet(&path));
    let (mut predecessor, _) = met.unwrap().unwrap();
    drop(successor);
    predecessor.gone().await;
    assert!(matches!(predecessor.relieve().await, Err(TakeoverError::GivenUp)), "somebody is there still");
    assert!(post.next().await.unwrap().hand::<TcpListener>(&[]).await.is_err(), "who only asked that has left");

    let (successor, met) = tokio::join!(hand(&post, &[]), meet(&path));
    let (mut predecessor, _) = met.unwrap().unwrap();
    drop((successor, post));
    assert!(!predecessor.relieve().await.unwrap(), "nobody is there any more");
}

#[tokio::test]
async fn where_the_process_before_ends_while_it_hands_over_there_is_none() {
    let (_directory, path) = private();
    let post = Post::open(&path, false).unwrap();
    let ends = async {
        drop(post.next().await.unwrap());
        drop(post);
    };
    let ((), met) = tokio::join!(ends, meet(&path));
    assert!(met.unwrap().is_none());
}

#[tokio::test]
async fn a_second_successor_is_sent_away() {
    let (_directory, path) = private();
    let post = Post::open(&path, false).unwrap();
    let refuse = async { post.next().await.unwrap().busy().await };
    let ((), met) = tokio::join!(refuse, meet(&path));
    assert!(matches!(met, Err(TakeoverError::Busy)));
}

#[tokio::test]
async fn another_protocol_is_not_understood() {
    let (_directory, path) = private();
    let post = Post::open(&path, false).unwrap();
    let client = Line::new(UnixStream::connect(&path).await.unwrap());
    client.say("countersign take-over 2", None).await.unwrap();
    let error = post.next().await.unwrap().hand::<TcpListener>(&[]).await.unwrap_err();
    assert!(error.to_string().contains("take-over 2"), "{error}");

    let lie = async {
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut successor = post.next().await.unwrap();
        successor.hand(&[("127.0.0.1:1".parse().unwrap(), own)]).await
    };
    let (_, met) = tokio::join!(lie, meet(&path));
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
    let error = meet(&path).await.unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("chmod go-w"), "{error}");
}
