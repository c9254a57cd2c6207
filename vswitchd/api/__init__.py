"""gRPC: one servicer per noun, clients, conversion between messages and the model's values."""
