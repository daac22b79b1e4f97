"""The engine over HTTP: TGI's protocol, OpenAI's shapes, and bulk routes."""
