//! Writes to a document and watches it: `hello URL [CA-FILE]`.
use fieldstream_client::{Client, ClientOptions, Operation};

#[tokio::main]
async fn main() -> Result<(), fieldstream_client::ClientError> {
    let mut args = std::env::args().skip(1);
    let url = args.next().unwrap_or("tcp://127.0.0.1:7440".into());
    let options = args.next().map_or(ClientOptions::default(), |ca| ClientOptions::default().ca_file(ca));
    let client = Client::connect(&url, options).await?;
    let mut watch = client.watch("hello").await?;
    client.instruct("hello", Operation::Append("Hello, field!\n".into())).await?;
    println!("{:?}\n{:?}", watch.next().await?, watch.next().await?);
    client.close(std::time::Duration::from_secs(10)).await
}
