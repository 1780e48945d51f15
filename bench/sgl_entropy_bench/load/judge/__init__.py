"""From records to figures and a verdict; result folders."""
