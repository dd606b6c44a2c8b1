"""How a weight is rounded onto a format's grid: by error feedback, and by tuning what stays in fp32."""
