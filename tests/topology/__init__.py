"""The services as docker-compose.yml and the Dockerfiles have them, as plain processes on one machine."""
