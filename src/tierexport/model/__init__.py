"""What the source is, and how it runs in fp32."""
