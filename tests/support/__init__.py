"""What tests share: a real server as a process, and an oracle that counts on its own."""
