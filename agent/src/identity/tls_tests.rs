//! Real handshakes against a real rustls server, with the client's clock somewhere else.

use super::*;
use crate::identity::{signer::FileSigner, test_server::Pki, time::build_floor};
use edgefleet_shared::time::Timestamp;
use std::io;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// One handshake and one byte each way, which shows that the server took the client's certificate.
async fn shake(pki: &Pki, client: Arc<ClientConfig>, name: &str) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let acceptor = TlsAcceptor::from(pki.server());
    let server = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut tls = acceptor.accept(listener.accept().await?.0).await?;
        let byte = tls.read_u8().await?;
        tls.write_u8(byte + 1).await?;
        tls.flush().await
    });
    let result = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut tls = TlsConnector::from(client).connect(name, tcp).await?;
        tls.write_u8(41).await?;
        assert_eq!(tls.read_u8().await?, 42);
        Ok(())
    }
    .await;
    server.abort();
    result
}

/// Local clocks a device may have; the server lives at the true time.
fn clocks() -> [(&'static str, Timestamp); 5] {
    let now = crate::clock::now();
    [
        ("true", now),
        ("1970", Timestamp::EPOCH),
        ("two years behind", now - DAY * 730),
        ("two years ahead", now + DAY * 730),
        ("ten years ahead", now + DAY * 3652),
    ]
}

#[tokio::test]
async fn first_contact_and_later_ones_work_whatever_the_local_clock_says() {
    let pki = Pki::valid_around(crate::clock::now());
    let pem = FileSigner::generate_pem().unwrap();
    let signer: Arc<dyn DeviceSigner> = Arc::new(FileSigner::from_pem(pem.as_bytes()).unwrap());
    let chain = pki.issue("dev-1", &signer);
    for (name, local) in clocks() {
        let clock = TrustedClock::with_local(move || local);
        let (first, missed) = pinned(pki.ca_pin(), &clock).unwrap();
        shake(&pki, first, "localhost").await.unwrap_or_else(|e| panic!("{name}, first contact: {e}"));
        assert!(!missed.happened());
        let later = enrolled(&pki.ca_pem(), Some((&chain, signer.clone())), &clock).unwrap();
        shake(&pki, later, "localhost").await.unwrap_or_else(|e| panic!("{name}, enrolled: {e}"));
    }
}

#[tokio::test]
async fn a_certificate_newer_than_this_agent_is_fine_without_a_clock_but_an_expired_one_is_not() {
    // Made three years after this agent was built; the device has no clock.
    let pki = Pki::valid_around(build_floor() + DAY * 1100);
    let clock = TrustedClock::with_local(|| Timestamp::EPOCH);
    let (config, _) = pinned(pki.ca_pin(), &clock).unwrap();
    shake(&pki, config, "localhost").await.unwrap();
    // With a believable clock the same certificate is not valid yet.
    let clock = TrustedClock::with_local(|| build_floor() + DAY);
    let (config, _) = pinned(pki.ca_pin(), &clock).unwrap();
    let error = shake(&pki, config, "localhost").await.unwrap_err();
    assert!(error.to_string().contains("not valid yet"), "{error}");
    // A signed document was seen after this one expired: no wrong clock can bring it back.
    let clock = TrustedClock::with_local(|| Timestamp::EPOCH);
    clock.raise(build_floor() + DAY * 2000);
    let (config, _) = pinned(pki.ca_pin(), &clock).unwrap();
    let error = shake(&pki, config, "localhost").await.unwrap_err();
    assert!(error.to_string().contains("expired"), "{error}");
}

#[tokio::test]
async fn another_ca_another_name_and_a_swapped_ca_are_refused() {
    let (pki, other) = (Pki::valid_around(crate::clock::now()), Pki::valid_around(crate::clock::now()));
    let clock = TrustedClock::system();
    let (config, missed) = pinned(other.ca_pin(), &clock).unwrap();
    assert!(shake(&pki, config, "localhost").await.is_err());
    assert!(missed.happened());
    let (config, missed) = pinned(pki.ca_pin(), &clock).unwrap();
    assert!(shake(&pki, config, "elsewhere").await.is_err());
    assert!(!missed.happened());
    // A man in the middle shows the right CA beside his own leaf: the chain does not hold.
    let (config, missed) = pinned(pki.ca_pin(), &clock).unwrap();
    assert!(shake(&other.showing_ca_of(&pki), config, "localhost").await.is_err());
    assert!(!missed.happened());
    let later = enrolled(&other.ca_pem(), None, &clock).unwrap();
    assert!(shake(&pki, later, "localhost").await.is_err());
}
