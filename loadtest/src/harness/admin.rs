//! Asks the data plane's admin server. The thinnest HTTP client that will do: one request, one connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::Context;

use crate::patience::PATIENCE;

/// An HTTP answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

/// GET.
pub fn http_get(address: SocketAddr, path: &str) -> anyhow::Result<HttpAnswer> {
    http_send(address, "GET", path, "")
}

/// Any method with a body.
pub fn http_send(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> anyhow::Result<HttpAnswer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: no chunks and no keep-alive, so the body is what comes until the end.
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("no end of the head")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(HttpAnswer {
        status: status.context("no status")?,
        body: body.to_owned(),
    })
}

/// A page of `/metrics`.
#[derive(Clone, Debug)]
pub struct Metrics {
    text: String,
}

impl Metrics {
    /// The page as text.
    pub fn new(text: String) -> Self {
        Self { text }
    }

    /// The sum of all series of that name which have all these labels; `None` when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut sum = None;
        for line in self.text.lines().filter(|line| !line.starts_with('#')) {
            let Some(rest) = line.strip_prefix(name) else {
                continue;
            };
            let (label_part, value) = match rest.strip_prefix('{') {
                Some(rest) => match rest.rsplit_once('}') {
                    Some(parts) => parts,
                    None => continue,
                },
                None if rest.starts_with(' ') => ("", rest),
                None => continue,
            };
            let has_all = labels
                .iter()
                .all(|(label, value)| label_part.contains(&format!("{label}=\"{value}\"")));
            if let (true, Ok(value)) = (has_all, value.trim().parse::<f64>()) {
                *sum.get_or_insert(0.0) += value;
            }
        }
        sum
    }

    /// The page as text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_the_labels_not_asked_for() {
        let page = Metrics::new(
            "# TYPE a counter\na{x=\"1\",shard=\"0\"} 2\na{x=\"1\",shard=\"1\"} 3\na{x=\"2\"} 7\nab 9\na_b 11\nc 4\n"
                .into(),
        );
        assert_eq!(page.sum("a", &[("x", "1")]), Some(5.0));
        assert_eq!(page.sum("a", &[]), Some(12.0));
        assert_eq!(page.sum("c", &[]), Some(4.0));
        assert_eq!(page.sum("d", &[]), None);
    }
}
