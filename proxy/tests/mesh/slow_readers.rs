//! Responses to callers that read slowly, and responses that fill what they are written to: they arrive whole.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::support::{App, Pair, read_to, soon};

/// What an application sends of its own, after the head of any request.
async fn app(response: Vec<u8>) -> App {
    App::tcp(move |mut tcp| {
        let response = response.clone();
        async move {
            read_to(&mut tcp, "\r\n\r\n").await;
            tcp.write_all(&response).await.unwrap();
        }
    })
    .await
}

/// Everything that comes back on a connection of which little is held on the way.
async fn answer(pair: &Pair) -> Vec<u8> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut tcp: TcpStream = socket.connect(pair.entrance).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 1500];
    loop {
        match soon("more of the answer", tcp.read(&mut piece)).await.unwrap() {
            0 => return answer,
            count => answer.extend_from_slice(&piece[..count]),
        }
        tokio::task::yield_now().await;
    }
}

/// The body of a response in chunks, and whether it ended where the bytes do.
fn decoded(mut chunks: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = chunks.windows(2).position(|pair| pair == b"\r\n") else { return (body, false) };
        let size = usize::from_str_radix(str::from_utf8(&chunks[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return (body, chunks[end..] == *b"\r\n\r\n");
        }
        body.extend_from_slice(&chunks[end + 2..end + 2 + size]);
        chunks = &chunks[end + 2 + size + 2..];
    }
}

#[tokio::test]
async fn a_response_to_the_end_of_the_connection_reaches_a_slow_reader_whole() {
    let body: Vec<u8> = (0..16_000_000_u32).map(|number| b'a' + (number % 23) as u8).collect();
    let app = app([b"HTTP/1.0 200 OK\r\n\r\n".to_vec(), body.clone()].concat()).await;
    let pair = Pair::start("http", app.address).await;
    let answer = answer(&pair).await;
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let (received, ended) = decoded(&answer[head..]);
    assert!(received == body, "{} of {} bytes before the end", received.len(), body.len());
    assert!(ended, "more came after the end");
}

#[tokio::test]
async fn interim_and_final_responses_with_large_heads_arrive_whole() {
    let header = format!("X-Large: {}\r\n", "x".repeat(20_000));
    let response =
        format!("HTTP/1.1 103 Early Hints\r\n{header}\r\nHTTP/1.1 200 OK\r\n{header}Content-Length: 2\r\n\r\nhi");
    let app = app(response.into_bytes()).await;
    let pair = Pair::start("http", app.address).await;
    let answer = String::from_utf8(answer(&pair).await).unwrap();
    assert_eq!(answer.matches("x-large").count() + answer.matches("X-Large").count(), 2);
    assert_eq!(answer.matches(&"x".repeat(20_000)).count(), 2, "{} bytes", answer.len());
    assert!(answer.ends_with("\r\n\r\nhi"), "{}", &answer[answer.len().saturating_sub(200)..]);
}
