"""What several test modules share: tiny networks, files such as are published, a stand-in Hub, hostile values."""
